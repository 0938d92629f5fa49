"""A search whose trials are really trained, in one process, and whose clock is that of 16 emulated slots.

The state machine is the real one. An epoch takes the processor time that it took here on one core, shared by
as many slots as the trial has with the efficiency that the study assumes; a start takes what the study
assumes of a restart. So trials arrive at rungs in the order of that clock, whatever else this machine does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trained_trials import ONLY_AT_RUNGS, Epoch, Subject, TrainedTrials

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.orchestration.assembly import assumed_times, build_machine, build_study_searcher
from parsl_rasda.orchestration.driver import Observer
from parsl_rasda.orchestration.job_specs import trial_seed
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import StudySpec, TuneSpec
from parsl_rasda.types import SiteName, TrialId, schedule_entry
from parsl_rasda.user_modules import import_user_module

EMULATED = {SiteName("emulated"): VirtualSite(nodes=4, gpus_per_node=4)}


def subjects_of(tune: TuneSpec, seed: int) -> list[Subject]:
    """Return the trials that a study proposes whose searcher learns nothing from results."""
    searcher = build_study_searcher(tune, seed)
    trials = [TrialId(f"{number:04d}") for number in range(tune.num_samples)]
    training = tune.training.model_copy(update={"checkpoint_every": ONLY_AT_RUNGS})
    configs = [dict(searcher.propose(trial) or {}) for trial in trials]
    return [
        Subject(config, trial_seed(seed, trial), training.resolve(config))
        for trial, config in zip(trials, configs, strict=True)
    ]


def trained_trials(spec: StudySpec, folder: Path, milestones: Sequence[int]) -> TrainedTrials:
    """Return the trials of a study whose search needs no other stage any more; its modules are found."""
    ((name, stage),) = spec.tune_stages.items()
    module, _, function = str(stage.tune.training.python).partition(":")
    return TrainedTrials(
        folder,
        getattr(import_user_module(module), function),
        spec.stages[name].with_,
        stage.tune.metric,
        milestones,
    )


class EmulatedSearch:
    """The search of a study, and the stage that evaluates its winner."""

    def __init__(self, spec: StudySpec, folder: Path, milestones: Sequence[int] = ()) -> None:
        """Prepare a search.

        Args:
            spec: Its study, whose modules are found.
            folder: Where trained trials are kept.
            milestones: Where they may be cut into stretches, if not at the milestones of the search.
        """
        ((self.stage, search),) = spec.tune_stages.items()
        self.spec, self.tune = spec, search.tune
        self.subjects = subjects_of(self.tune, spec.seed)
        self.trained = trained_trials(spec, folder, milestones or self.tune.scheduler.milestones)
        self.machine = build_machine(self.tune)

    def run(self, observers: Sequence[Observer] = ()) -> Usage:
        """Run the search to its end."""
        first = self.machine.split(0)
        schedule = (schedule_entry(0, first.replicas, first.batches),)
        samples = self.trained.epoch(self.subjects[0], schedule, 1).samples
        speedup = assumed_times(self.tune).speedup
        restart_s = self.tune.estimates.restart_s
        costs = Costs(
            epoch_s=lambda trial, width: self._ahead(trial).seconds / speedup(width),
            metric=lambda trial, _: self._ahead(trial).metric,
            noise=lambda trial, _: self._ahead(trial).noise,
            launch_s=lambda _: restart_s,
            restart_s=restart_s,
            samples=samples,
        )
        return Rehearsal(self.machine, EMULATED, costs, observers).run(self.tune.num_samples)

    def _ahead(self, number: int) -> Epoch:
        """Return the next epoch of a trial."""
        record = self._record(number)
        return self.trained.epoch(self.subjects[number], record.entries, record.epoch + 1)

    def _record(self, number: int) -> TrialRecord:
        return self.machine.trials[TrialId(f"{number:04d}")]

    def evaluated(self, best: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the study's last stage says of a trial."""
        number, epoch = int(best["trial"]), best["epoch"]
        subject = self.subjects[number]
        checkpoint = self.trained.checkpoint(subject, self._record(number).entries, epoch)
        kept = checkpoint.parent / "evaluation.json"
        if not kept.exists():
            (name,) = (name for name in self.spec.stages if name != self.stage)
            module, _, function = str(self.spec.stages[name].python).partition(":")
            told = {**best, "config": subject.config, "checkpoint": str(checkpoint)}
            needs = dict.fromkeys(self.spec.stages[name].needs, told)
            with tempfile.TemporaryDirectory() as directory:
                arguments = {**self.spec.stages[name].with_, **needs, "directory": directory}
                found = getattr(import_user_module(module), function)(**arguments)
            replace_file(kept, json.dumps(found))
        return dict(json.loads(kept.read_text(encoding="utf-8")))
