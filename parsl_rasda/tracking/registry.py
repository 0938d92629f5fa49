"""From what a study declares to its trackers; their libraries are imported when they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import assert_never

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.study.observers import TrackerSpec
from parsl_rasda.tracking.base import Origin, Tracker, without_password


def trackers_of(
    specs: Sequence[TrackerSpec], origin: Origin, directory: Path
) -> list[tuple[str, Callable[[], Tracker]]]:
    """Return the name of each tracker of a study, and what makes it.

    Args:
        specs: What the study declares.
        origin: Which search it is.
        directory: Where its journal is; trackers without an address write there.
    """
    return [(_name(spec), partial(_tracker, spec, origin, directory)) for spec in specs]


def _name(spec: TrackerSpec) -> str:
    return f"track: {spec.kind}" + (f" {without_password(spec.uri)}" if spec.uri else "")


def _tracker(spec: TrackerSpec, origin: Origin, directory: Path) -> Tracker:
    try:
        match spec.kind:
            case "tensorboard":
                from parsl_rasda.tracking.tensorboard import TensorBoardTracker

                folder = Path(spec.uri) / f"{origin.name}-{origin.mark}" if spec.uri else None
                return TensorBoardTracker(folder or directory / "tensorboard", origin)
            case "mlflow":
                from parsl_rasda.tracking.mlflow import MlflowTracker

                own = f"sqlite:///{directory.absolute() / 'tracking.db'}"
                artifacts = None if spec.uri else (directory / "mlflow").absolute().as_uri()
                return MlflowTracker(spec.uri or own, origin, artifacts)
            case "wandb":
                from parsl_rasda.tracking.wandb import WandbTracker

                return WandbTracker(spec, origin, directory)
            case _:
                assert_never(spec.kind)
    except ImportError as error:
        extra = f"a Python with it: pip install 'parsl_rasda[{spec.kind}]'"
        raise InvalidSettingError("track", spec.kind, f"{extra} ({error})") from error
