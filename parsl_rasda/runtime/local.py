"""A `Trial` without a controller, to try a training function in a notebook or a test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parsl_rasda.protocol import JobSpec, Training
from parsl_rasda.runtime.checkpoints.checkpoint import read_header
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.runtime.process.attempt import Session
from parsl_rasda.runtime.process.launch_context import launch_context
from parsl_rasda.runtime.trial import Trial
from parsl_rasda.types import JSON, TrialId


def local_trial(
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, JSON] | None = None,
    epochs: int = 1,
    replicas: int = 1,
    directory: str | Path | None = None,
    resume_from: str | Path | None = None,
    seed: int = 0,
    accelerator: str = "cpu",
    **training: Any,
) -> Trial:
    """Return a trial of one rank; ``trial.history`` has its reports afterwards.

    Args:
        config: The hyperparameters.
        inputs: What the stages before would have given.
        epochs: How long to train.
        replicas: Logical data-parallel workers, carried by this one process.
        directory: Where checkpoints go; a new temporary directory by default.
        resume_from: A checkpoint to continue from.
        seed: Seed of the trial.
        accelerator: ``cuda``, ``rocm``, ``xpu`` or ``cpu``.
        training: As under ``training:`` in a study, for example ``batch_size=16``.
    """
    place = Path(directory or tempfile.mkdtemp(prefix="trial-"))
    place.mkdir(parents=True, exist_ok=True)
    order = JobSpec(
        study="local",
        trial=TrialId("local"),
        attempt=0,
        config=config,
        directory=str(place),
        seed=seed,
        metric="",
        mode="min",
        epoch=read_header(Path(resume_from)).get("epoch", 0) if resume_from else 0,
        until=epochs,
        max_epochs=epochs,
        schedule=((0, replicas),),
        world_size=1,
        inputs=inputs or {},
        training=Training(**training),
        resume_from=str(resume_from) if resume_from else None,
        accelerator=accelerator,
    )
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI_", "SLURM_"))
    }
    session = Session(order, launch_context(order, environ))
    seed_start(seed)
    return Trial(session)
