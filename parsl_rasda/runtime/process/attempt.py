"""One attempt, as the controller sees it: what it was ordered, what it reports, why it leaves.

Files first, then words: a line of ``epochs.jsonl`` is synced before anything is said of it, and
``report.json`` belongs to the first rank that has something to say. Never imports torch.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parsl_rasda.errors import DamagedCheckpointError
from parsl_rasda.protocol import DEADLINE_MARGIN_S, Checkpoint, EpochReport, JobResult, JobSpec
from parsl_rasda.runtime.checkpoints.checkpoint import HEADER
from parsl_rasda.runtime.checkpoints.retention import (
    FETCHED,
    known_epochs,
    remove_superseded_attempts,
    superseded,
)
from parsl_rasda.runtime.checkpoints.shared import CopyGoneError, SharedCheckpoints, fetch, is_url
from parsl_rasda.runtime.process.channel import ControlChannel
from parsl_rasda.runtime.process.launch_context import LaunchContext
from parsl_rasda.types import Outcome

LAST_WORDS_S = 5.0
FORKED = "PARSL_RASDA_FORKED"  # set by a fork server, to how long the rank waited for torch to be loaded [s]


class Leave(BaseException):
    """Unwinds the training function: the job must leave now, and its state is saved.

    Args:
        agreed: Whether every rank leaves here too.
    """

    def __init__(self, *, agreed: bool) -> None:
        super().__init__(agreed)
        self.agreed = agreed


class Session:
    """State and files of one attempt on this rank.

    Attributes:
        epoch: Epochs done.
        until: Epochs done when the job asks or ends.
        schedule: ``(epoch, replicas)``, the current stretch last.
        outcome: How the attempt ends, once that is decided.
        history: What this attempt has reported, on rank 0.
        preempt_cause: Why the job must leave at its next step, or None.
        lost_origin: What became of the checkpoint that the order names, if it cannot be read; or None.
        interruptible: Whether a signal may unwind the training function where it stands, because
            nothing would be lost that is not lost anyway.
        is_prepared: Whether there is a model in training, which leaves at its next step.
        is_unwinding: Whether a signal has unwound the training function.
    """

    def __init__(self, order: JobSpec, context: LaunchContext) -> None:
        self.order, self.context = order, context
        self.directory = Path(order.directory)
        self.channel: ControlChannel | None = None
        self.epoch, self.until = order.epoch, order.until
        self.schedule: tuple[tuple[int, int], ...] = order.schedule
        self.outcome: Outcome | None = None
        self.history: list[EpochReport] = []
        self.preempt_cause: str | None = None
        self.lost_origin: str | None = None
        self.interruptible = True
        self.is_prepared = False
        self.is_unwinding = False
        self.slots: tuple[str, ...] = order.slots
        self.checkpoints: list[Path] = []  # of this attempt and whole, oldest first
        self._epoch_of: dict[Path, int] = {}
        self._shared = (
            SharedCheckpoints(order.share_at, self._superseded)
            if order.share_at and context.rank == 0
            else None
        )
        self._is_ready = False

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the job."""
        return self.context.rank == 0

    @property
    def replicas(self) -> int:
        """Replicas of the current stretch."""
        return self.schedule[-1][1]

    def preempt(self, cause: str) -> None:
        """Leave at the next step; the first reason counts."""
        self.preempt_cause = self.preempt_cause or cause

    def must_leave(self, margin_s: float = 0.0) -> bool:
        """Return whether this rank has a reason to leave, or so little time that it should."""
        deadline = self.order.deadline
        if deadline is not None and time.time() > deadline - DEADLINE_MARGIN_S - margin_s:
            self.preempt("the deadline is near")
        return self.preempt_cause is not None

    def ready(self) -> None:
        """Tell the controller, once, that the start is over and work goes on."""
        if not self._is_ready:
            self._is_ready = True
            self.say("ready", {"once_s": float(os.environ.get(FORKED, "0"))})

    def record(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Report the epoch that is now done: to the file, then to the controller."""
        if not self.is_main:
            return
        if not self.history:
            remove_superseded_attempts(self.directory, self.order.resume_from)
        report = EpochReport(
            trial=self.order.trial,
            attempt=self.order.attempt,
            epoch=self.epoch,
            metrics=metrics,
            seconds=seconds,
            checkpoint=self._reachable(),
            at=time.time(),
            slots=self.slots,
        )
        self.history.append(report)
        with (self.directory / "epochs.jsonl").open("a") as file:
            file.write(json.dumps(report.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.say("epoch", report.to_json())

    def add_checkpoint(self, path: Path, epoch: int | None = None) -> None:
        """Note a checkpoint that is whole; older ones go, except the one before and what may be asked for.

        Args:
            path: Its directory.
            epoch: Epochs done in it, if others than now.
        """
        if path in self.checkpoints:
            return
        self.checkpoints.append(path)
        self._epoch_of[path] = self.epoch if epoch is None else epoch
        if self._shared:
            self._shared.add(path, self._epoch_of[path])
        places = [str(checkpoint) for checkpoint in self.checkpoints]
        for _ in range(superseded(places, (), None) if self._shared else self._superseded(places)):
            if self._shared and self._shared.needs(self.checkpoints[0]):
                break
            old = self.checkpoints.pop(0)
            if self.is_main:
                shutil.rmtree(old, ignore_errors=True)

    def _superseded(self, places: Sequence[str]) -> int:
        """Return how many checkpoints may go that the reports have named, the oldest first."""
        return superseded(places, tuple(self.history), known_epochs(self.directory))

    def share(self) -> None:
        """Wait until the last checkpoint is where all sites reach it, if it is to be.

        Raises:
            StoreError: If it could not be copied, or the job must leave before that.
        """
        if self._shared:
            deadline = self.order.deadline
            self._shared.finish(None if deadline is None else max(0.0, deadline - LAST_WORDS_S - time.time()))

    @contextmanager
    def taking_up(self) -> Iterator[None]:
        """Note, while the ordered checkpoint is read, that it is gone or damaged: the trial has others."""
        try:
            yield
        except (DamagedCheckpointError, CopyGoneError) as error:
            self.lost_origin = f"{error}; the trial goes on from an older one, or from its start"
            raise

    def find_checkpoint(self, place: str) -> Path:
        """Return the directory of a checkpoint of this trial; rank 0 fetches it if it is not on this site.

        Args:
            place: A directory, or a URL.

        Raises:
            CopyGoneError: If it is not at the URL any more.
            StoreError: If it cannot be fetched.
        """
        if not is_url(place):
            return Path(place)
        attempt, name = place.split("/")[-2:]
        written_here, fetched = self.directory.parent / attempt / name, self.directory / FETCHED
        if (written_here / HEADER).exists():
            return written_here
        if self.is_main and not fetched.exists():
            fetch(place, fetched)
        return fetched

    def _reachable(self) -> Checkpoint | None:
        """Return the newest checkpoint that others can use."""
        if self._shared:
            return self._shared.newest
        if not self.checkpoints:
            return None
        newest = self.checkpoints[-1]
        return Checkpoint(str(newest), self._epoch_of[newest])

    def say(self, op: str, message: Mapping[str, Any]) -> None:
        """Speak to the controller, where there is a channel."""
        if self.channel:
            self.channel.say(op, message)

    def close(self, outcome: Outcome, cause: str = "", traceback: str = "") -> None:
        """Write the report of the attempt, unless another rank was first, and say bye."""
        report = JobResult(
            trial=self.order.trial,
            attempt=self.order.attempt,
            outcome=outcome,
            epoch=self.epoch,
            cause=cause,
            checkpoint=self._reachable(),
            traceback=traceback,
            at=time.time(),
            unreadable=self.order.resume_from if self.lost_origin and outcome is Outcome.LOST else None,
        )
        if write_once(self.directory / "report.json", json.dumps(report.to_json(), indent=1)):
            self.say("bye", report.to_json())


def write_once(path: Path, text: str) -> bool:
    """Write a file whole unless it exists; returns whether it was this process that wrote it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True
