"""Attempts of one rank that no controller has asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parsl_rasda.protocol import JobSpec, Training
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.attempt.launch_context import launch_context
from parsl_rasda.types import TrialId


def attempt_in(directory: Path, **changes: Any) -> Attempt:
    """Return an attempt at four epochs of a trial with two replicas."""
    facts = {
        "study": "local",
        "trial": TrialId("local"),
        "attempt": 0,
        "config": {},
        "directory": str(directory),
        "seed": 0,
        "metric": "",
        "mode": "min",
        "epoch": 0,
        "until": 4,
        "max_epochs": 4,
        "schedule": ((0, 2),),
        "world_size": 1,
        "accelerator": "cpu",
    }
    spec = JobSpec(**{**facts, **changes})
    return Attempt(spec, launch_context(spec, {}))


def attempt_from(
    directory: Path, *, resume_from: Path | None = None, replicas: int = 1, **training: Any
) -> Attempt:
    """Return an attempt at one epoch, from its start or from a checkpoint in it."""
    return attempt_in(
        directory,
        until=1,
        schedule=((0, replicas, replicas),),
        max_epochs=1,
        resume_from=str(resume_from) if resume_from else None,
        training=Training(**{"batch_size": 2, **training}),
    )
