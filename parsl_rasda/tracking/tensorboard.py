"""Trials as event files of TensorBoard, a folder each; the only module that imports its library.

What a file must hold follows from what the trial has reported. So a file is brought up to date by what it
lacks, also after a kill in the middle of a record; one that holds something else, because epochs were trained
again, gives way to a new one.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from parsl_rasda.orchestration.curves import Curve
from parsl_rasda.tracking.base import STEPS, Origin, plain_config, thousandths

_PREFIX = "events.out.tfevents."


class TensorBoardTracker:
    """A folder for each trial, with its configuration for the tab of hyperparameters."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        """Write below a folder.

        Args:
            folder: Where.
            origin: Of the trials.
        """
        self._folder, self._origin = folder, origin

    def write(self, curve: Curve) -> None:
        """Bring the file of a trial up to date."""
        if curve.began is None:
            return
        folder = self._folder / curve.trial
        folder.mkdir(parents=True, exist_ok=True)
        wanted = _content(curve, self._origin)
        files = sorted(folder.glob(f"{_PREFIX}*"))
        newest = files[-1] if files else None
        there = newest.read_bytes() if newest else b""
        if newest is None or not wanted.startswith(there):
            number = int(newest.name.rpartition(".")[2]) + 1 if newest else 0
            newest, there = folder / f"{_PREFIX}{int(curve.began):010d}.{self._origin.mark}.{number:06d}", b""
        with newest.open("ab") as file:
            file.write(wanted[len(there) :])
            file.flush()
            os.fsync(file.fileno())
        for old in files:
            if old != newest:
                old.unlink()

    def close(self) -> None:
        """Nothing is held."""


def _content(curve: Curve, origin: Origin) -> bytes:
    """Return what the file of a trial holds, byte for byte the same whenever it is asked."""
    output = io.BytesIO()
    writer = RecordWriter(output)
    for event in _events(curve, origin):
        writer.write(event.SerializeToString(deterministic=True))
    return output.getvalue()


def _events(curve: Curve, origin: Origin) -> Iterator[Event]:
    began = curve.began or 0.0
    yield Event(wall_time=began, file_version="brain.Event:2")
    # TensorBoard, while it watches: what it has read of an earlier file of this trial does not stand.
    yield Event(wall_time=began, step=0, session_log=SessionLog(status=SessionLog.START))
    settings = {name: "null" if v is None else v for name, v in plain_config(curve.config).items()}
    hyperparameters = hparams_pb(settings, trial_id=origin.key(curve), start_time_secs=began)
    yield Event(wall_time=began, step=0, summary=hyperparameters)
    for epoch, point in curve.epochs:
        for place, metrics in point.steps:
            steps = [
                Summary.Value(tag=f"{STEPS}{name}", simple_value=value) for name, value in metrics.items()
            ]
            yield Event(wall_time=point.at, step=thousandths(place), summary=Summary(value=steps))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.metrics.items()]
        yield Event(wall_time=point.at, step=epoch, summary=Summary(value=values))
