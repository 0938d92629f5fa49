"""A small study driven by the real driver against the fake runner."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from parsl_rasda.orchestration.assembly import build_machine, build_study_searcher
from parsl_rasda.orchestration.driver import Driver
from parsl_rasda.orchestration.job_specs import JobSpecBuilder, SiteFacts
from parsl_rasda.orchestration.journal import Journal
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.study import TuneSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import SiteName

SITE = SiteName("a")


def tune(**values: Any) -> TuneSpec:
    scheduler = {"max_t": 4, **values.pop("scheduler", {})}
    return TuneSpec.model_validate(
        {
            "metric": "loss",
            "num_samples": 6,
            "scheduler": scheduler,
            "search_space": {"lr": {"float": [0.001, 0.1], "log": True}},
            "training": {"python": "somewhere:train"},
            **values,
        }
    )


def curve(order: Any, epoch: int) -> dict[str, float]:
    return {"loss": float(order.config["lr"]) + 1.0 / epoch}


def desk(directory: Path, spec: TuneSpec) -> JobSpecBuilder:
    return JobSpecBuilder("study", 7, spec, RunDirectory(directory), {SITE: SiteFacts("none")})


def driver(directory: Path, runner: FakeBackend, spec: TuneSpec | None = None, **values: Any) -> Driver:
    spec = spec or tune()
    ticks = count(1)
    clock: Callable[[], float] = values.pop("clock", lambda: float(next(ticks)))
    return Driver(
        values.pop("machine", build_machine(spec)),
        values.pop("journal", None) or Journal(directory / "journal.jsonl", "study"),
        runner,
        values.pop("searcher", build_study_searcher(spec, 7)),
        desk(directory, spec),
        clock,
        values.pop("observers", [Usage()]),
        **values,
    )
