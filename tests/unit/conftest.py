"""Finished run directories, made by driving the real machine in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import EpochReported, Event, Instruction, TrialProposed
from parsl_rasda.orchestration.journal import Journal, Record
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import StageRecord, keep_result, write_record
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import StudySpec, dump_study
from parsl_rasda.types import JSON, SiteName, StageState

SITE = """
provider: {type: LocalProvider}
accelerator: none
mpi_launcher: process
gpus_per_node: 2
nodes: 2
"""


def study_of(**changes: Any) -> StudySpec:
    """Return a small study; changes go into its `tune` block, those of ``scheduler`` into that."""
    scheduler = {"max_t": 8, "reduction_factor": 2, "max_workers": 4, **changes.pop("scheduler", {})}
    tune = {
        "metric": "val_loss",
        "num_samples": 8,
        "scheduler": scheduler,
        "search_space": {"lr": {"float": [0.001, 0.1]}, "optimizer": {"choice": ["sgd", "adamw"]}},
        "training": {"python": "workflows.emulated.train:train"},
        "estimates": {"epoch_s": 10.0, "restart_s": 1.0, "efficiency": 0.9},
        **changes,
    }
    return StudySpec.model_validate({"name": "rehearsed", "seed": 3, "tune": tune})


def costs_of(**changes: Any) -> Costs:
    """Return costs in which trials differ in pace, and smaller metrics belong to better trials."""

    def quality(trial: int) -> float:
        return random.Random(trial).random()

    costs = Costs(
        epoch_s=lambda trial, width: 10.0 * (1 + 0.1 * (trial % 3)) / width**0.85,
        metric=lambda trial, epoch: quality(trial) + 1.0 / epoch,
        launch_s=lambda trial: 3.0 if trial < 4 else 0.5,
        restart_s=0.7,
        boundary_s=0.2,
        leave_s=0.1,
        queue_s=12.0,
    )
    return replace(costs, **changes)


def plain_config(trial: int) -> Mapping[str, JSON]:
    """Return the configuration of a trial in the search space of `study_of`."""
    return {"lr": 0.001 * (trial + 1), "optimizer": "sgd" if trial % 2 else "adamw"}


@dataclass
class Recorder:
    """A machine that keeps its journal, and whose trials get configurations."""

    machine: Machine
    records: list[Record]
    config_of: Callable[[int], Mapping[str, JSON]]
    also: Mapping[str, Callable[[int], float]] = field(default_factory=dict)

    @property
    def settings(self) -> Any:
        return self.machine.settings

    @property
    def wake_at(self) -> float | None:
        return self.machine.wake_at

    def handle(self, event: Event) -> tuple[Instruction, ...]:
        if isinstance(event, TrialProposed):
            event = structs.replace(event, config=self.config_of(int(event.trial)))
        if isinstance(event, EpochReported):
            others = {name: value_at(event.epoch) for name, value_at in self.also.items()}
            event = structs.replace(event, metrics={**event.metrics, **others})
        instructions = self.machine.handle(event)
        self.records.append(Record(event, instructions))
        return instructions


def rehearse_into(
    directory: Path,
    study: StudySpec,
    *,
    costs: Costs | None = None,
    site: VirtualSite | None = None,
    stage: str | None = None,
    torn_after: float | None = None,
    config_of: Callable[[int], Mapping[str, JSON]] = plain_config,
    also: Mapping[str, Callable[[int], float]] | None = None,
) -> Machine:
    """Write the run directory of a search as if it had been run; return its machine.

    Args:
        directory: Where.
        study: What.
        costs: What training costs.
        site: Where it runs; the shape of `SITE` by default.
        stage: Its stage, where there are several.
        torn_after: The controller dies at this time [s].
        config_of: The configuration of a trial, by its number.
        also: Further metrics, by epoch.
    """
    run = RunDirectory(directory)
    run.sites.mkdir(parents=True, exist_ok=True)
    run.study_file.write_text(dump_study(study))
    (run.sites / "virtual.yaml").write_text(SITE)
    name = stage or next(iter(study.tune_stages))
    recorder = Recorder(build_machine(study.tune_stages[name].tune), [], config_of, also or {})
    shape = site or VirtualSite(nodes=2, gpus_per_node=2)
    rehearsal = Rehearsal(recorder, {SiteName("virtual"): shape}, costs or costs_of())  # type: ignore[arg-type]  # handles events as the machine does
    tune = study.tune_stages[name].tune
    rehearsal.run(tune.num_samples, confirm=tune.confirm.counts if tune.confirm else None)
    place = run.path if len(study.tune_stages) == 1 else run.path / name
    place.mkdir(exist_ok=True)
    with Journal(place / "journal.jsonl", study.name) as journal:
        journal.append([r for r in recorder.records if torn_after is None or r.event.at <= torn_after])
    return recorder.machine


class Rehearsals:
    """What tests of commands, reports and forecasts start from."""

    study_of = staticmethod(study_of)
    costs_of = staticmethod(costs_of)
    into = staticmethod(rehearse_into)


@pytest.fixture
def rehearsals() -> Rehearsals:
    return Rehearsals()


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The directory of a run of three stages, of which the search and the one before it are done."""
    directory = tmp_path / "run"
    study = study_of().model_dump(mode="json", by_alias=True, exclude_unset=True)
    python = "workflows.emulated.train:train"
    study["stages"] = {
        "simulate": {"python": python, "for_each": {"seed": [0, 1]}},
        "tune": {**study["stages"]["tune"], "needs": {"fields": "simulate"}},
        "evaluate": {"python": python, "needs": {"best": "tune"}},
    }
    rehearse_into(directory, StudySpec.model_validate(study))
    folder, calls = directory / "stages" / "simulate", {"0000": "a", "0001": "b"}
    for call, key in calls.items():
        keep_result(folder, call, key, {"result": f"field-{call}", "seconds": 1.5})
    result = ["field-0000", "field-0001"]
    write_record(folder, StageRecord(StageState.DONE, at=1.0, calls=calls, result=result))
    return directory


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The directory of a run that ended well, with one trial that diverged."""
    directory = tmp_path / "run"
    good = costs_of().metric
    bad = costs_of(metric=lambda trial, epoch: float("nan") if trial == 5 else good(trial, epoch))
    rehearse_into(directory, study_of(), costs=bad)
    return directory
