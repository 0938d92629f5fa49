"""What the contract of backends trains and calls: small, without torch, and the same wherever it runs.

`config` scripts a training: ``epoch_s``, the time of an epoch [s], 0.05 by default.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl_rasda.runtime import Trial

TRAINING = "parsl_rasda.testing.training:train"


def train(trial: Trial) -> None:
    """Report ``loss``, which falls with every epoch."""
    for epoch in trial.epochs():
        time.sleep(float(trial.config.get("epoch_s", 0.05)))
        trial.report(loss=1.0 / (epoch + 1))


def call(
    stage: str,
    target: Any,
    arguments: Mapping[str, Any],
    directory: str,
    search_path: Sequence[str],
    *,
    files: Sequence[str] = (),
    inputs: Sequence[Any] = (),
) -> dict[str, Any]:
    """Return what a call of a stage was given; of a file, what it holds."""
    paths = {name: file.filepath for name, file in zip(files, inputs, strict=True)}
    given = {**arguments, **paths}
    held = {name: Path(path).read_text(encoding="utf-8") for name, path in given.items() if name == "file"}
    return {"stage": stage, "target": target, "directory": directory, "arguments": {**arguments, **held}}
