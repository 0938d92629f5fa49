"""Judged as they arrive, trials with a constant batch end under RASDA as under ASHA, to the last bit.

That holds where they arrive in the same order. So the clock is emulated: an epoch takes a trial as long at
any width. What a trial reports is what real ranks have reported that trained it at the width it has.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rank_launch import HERE, MPIEXEC, epochs_of, finished, report_of, written_order
from width_cases import differing, final_state

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import EpochReported, ObserveTrial, StartJob, TrialFinished
from parsl_rasda.orchestration.summary import best
from parsl_rasda.protocol import Training
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.types import SiteName

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(300)]

RATES = (0.0004, 0.03, 0.005, 0.3, 0.001, 0.1)  # by trial
SAMPLES = 96
SHARED = ((0, 4, 1),)  # four replicas, one batch
STRETCHES = ((0, 1, 1), (1, 2, 2), (2, 4, 4))  # from, until [epochs], ranks under RASDA
SITE = {SiteName("emulated"): VirtualSite(nodes=4, gpus_per_node=8)}  # nobody waits for GPUs


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """Train each trial on 1 rank, and on 1, then 2, then 4; by trial, milestone and ranks."""
    root, found = tmp_path_factory.mktemp("trials"), {}
    for width in (1, 2, 4):
        for trial, rate in enumerate(RATES):
            before = None
            for begin, end, grown in STRETCHES:
                if width in {1, grown}:
                    origin = before and found[trial, begin, width if width == 1 else before]
                    found[trial, end, width] = written_order(
                        root / f"w{width}" / f"{trial}-{end}",
                        config={"lr": rate, "samples": SAMPLES},
                        seed=trial,
                        epoch=begin,
                        until=end,
                        world_size=width,
                        schedule=SHARED,
                        training=Training(batch_size=8, warmup_initial=1.0, checkpoint_every=100),
                        resume_from=origin and str(Path(origin.directory) / f"epoch-{begin:06d}"),
                    )
                before = grown
        words = (sys.executable, str(HERE / "rank_functions.py"), str(root / f"w{width}"))
        status, errors = finished((str(MPIEXEC), "-n", str(width), *words))
        assert status == 0, errors
    return found


@dataclass
class Told:
    """What a search was told and has decided, in order: all but when jobs start, and where."""

    reports: list = field(default_factory=list)
    decisions: list = field(default_factory=list)
    schedules: set = field(default_factory=set)
    widths: set = field(default_factory=set)

    def add(self, event, instructions):
        if isinstance(event, EpochReported):
            self.reports.append((event.at, event.job.trial, event.epoch, dict(event.metrics), event.noise))
        for instruction in instructions:
            match instruction:
                case ObserveTrial() | TrialFinished():
                    self.decisions.append((event.at, instruction))
                case StartJob():
                    self.schedules.add((instruction.job.trial, instruction.schedule))
                    self.widths.add(instruction.placement.world_size)


def searched(orders, keys, pace):
    """Run the search on the emulated clock; returns the winner's last order, and what was told."""
    scheduler = {"max_t": 4, "max_workers": 4, "batch": "constant", **keys}
    machine = build_machine(
        TuneSpec.model_validate(
            {
                "metric": "val_loss",
                "num_samples": len(RATES),
                "scheduler": scheduler,
                "search_space": {"lr": {"float": [1e-4, 1.0]}},
                "training": {"python": "rank_functions:learn", "batch_size": 8},
            }
        )
    )
    widths, told = {}, Told()

    def ahead(trial):
        epoch = machine.trials[f"{trial:04d}"].epoch + 1
        end = next(end for _, end, _ in STRETCHES if end >= epoch)
        return next(e for e in epochs_of(orders[trial, end, widths[trial]]) if e.epoch == epoch)

    def epoch_s(trial, width):
        widths[trial] = width
        return pace[trial]

    costs = Costs(
        epoch_s,
        lambda trial, _: ahead(trial).metrics["val_loss"],
        noise=lambda trial, _: ahead(trial).noise,
        samples=SAMPLES,
    )
    Rehearsal(machine, SITE, costs, [told]).run(len(RATES))
    winner = best(machine)
    return orders[int(winner["trial"]), winner["epoch"], widths[int(winner["trial"])]], told


PACE = (1.0, 1.37, 0.81, 1.13, 0.59, 1.71)  # seconds of an epoch, by trial


def test_rasda_ends_as_asha_does_where_trials_arrive_in_the_same_order(orders) -> None:
    alone, asha = searched(orders, {"kind": "asha", "growth": "none"}, PACE)
    wide, rasda = searched(orders, {"growth": "strict"}, PACE)
    assert (asha.widths, rasda.widths) == ({1}, {1, 2, 4})
    assert rasda.reports == asha.reports
    assert rasda.decisions == asha.decisions
    assert {schedule for _, schedule in rasda.schedules | asha.schedules} == {SHARED}
    assert (alone.world_size, wide.world_size) == (1, 4)
    assert report_of(alone).epoch == report_of(wide).epoch == 4
    assert differing(final_state(alone), final_state(wide)) == []


def test_the_order_of_arrival_does_matter(orders) -> None:
    """Else the test above would show no more than one of synchronous searches does."""
    ends = []
    for pace in (PACE, tuple(reversed(PACE))):
        _, told = searched(orders, {"growth": "strict"}, pace)
        ends.append({d.trial: d.state for _, d in told.decisions if isinstance(d, TrialFinished)})
    assert ends[0] != ends[1]
