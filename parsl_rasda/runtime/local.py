"""A `Trial` without a controller, to try a training function in a notebook or a test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parsl_rasda.protocol import JobSpec, Training
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.attempt.launch_context import LAUNCHERS, launch_context
from parsl_rasda.runtime.checkpoints.checkpoint import read_header
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.runtime.trial import Trial
from parsl_rasda.types import JSON, TrialId, schedule_entry

_OF_LAUNCHERS = {name for names in LAUNCHERS for name in names}  # of no concern here


def local_trial(  # noqa: PLR0913  # each is a key of a study, or of its trial
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, JSON] | None = None,
    epochs: int = 1,
    replicas: int = 1,
    batches: int | None = None,
    directory: str | Path | None = None,
    resume_from: str | Path | None = None,
    seed: int = 0,
    accelerator: str = "cpu",
    **training: Any,
) -> Trial:
    """Return a trial of one rank. Its reports are in ``trial.history``.

    Args:
        config: The hyperparameters.
        inputs: What the earlier stages would have given.
        epochs: How many epochs to train.
        replicas: Logical data-parallel workers, all carried by this process.
        batches: How many ``batch_size`` make a step; one a replica by default.
        directory: Where checkpoints go; a new temporary directory by default.
        resume_from: A checkpoint to resume from.
        seed: Seed of the trial.
        accelerator: ``cuda``, ``rocm``, ``xpu`` or ``cpu``.
        training: As under ``training:`` in a study, for example ``batch_size=16``.
    """
    place = Path(directory or tempfile.mkdtemp(prefix="trial-"))
    place.mkdir(parents=True, exist_ok=True)
    spec = JobSpec(
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
        schedule=(schedule_entry(0, replicas, replicas if batches is None else batches),),
        world_size=1,
        inputs=inputs or {},
        training=Training(**training),
        resume_from=str(resume_from) if resume_from else None,
        accelerator=accelerator,
    )
    environ = {name: value for name, value in os.environ.items() if name not in _OF_LAUNCHERS}
    attempt = Attempt(spec, launch_context(spec, environ))
    seed_start(seed)
    return Trial(attempt)
