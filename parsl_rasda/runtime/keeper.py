"""The checkpoints of a trial in training: how they are made, when they are told of, how training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.errors import CheckpointError
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.checkpoints.checkpoint import (
    GIVEN,
    check_header,
    checkpoint_name,
    read_header,
    write_checkpoint,
)
from parsl_rasda.runtime.checkpoints.saver import MOMENT_S, Saver, copied
from parsl_rasda.runtime.checkpoints.shared import is_url
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.own_loop import OwnLoop

if TYPE_CHECKING:
    from parsl_rasda.runtime.engine.engine import Engine


class Keeper:
    """What is saved of a trial by this rank, and by all ranks together.

    Attributes:
        slowest_s: The longest that a checkpoint has taken [s].
    """

    def __init__(self, attempt: Attempt, group: Callable[[], Group], own: OwnLoop, saver: Saver) -> None:
        """Have saved nothing yet.

        Args:
            attempt: Whose checkpoints these are.
            group: Returns the ranks, once they must meet.
            own: What a loop without an engine has given.
            saver: Writes in the background.
        """
        self._attempt, self._group, self._own, self._saver = attempt, group, own, saver
        self._saved: tuple[Path, int] | None = None  # the newest and its epoch; it may not be whole
        self._unnoted: list[tuple[Path, int]] = []  # those that were not whole yet
        self.slowest_s = 0.0

    @property
    def has_saved(self) -> bool:
        """Whether there is a checkpoint of the current epoch."""
        return self._saved is not None and self._saved[1] == self._attempt.epoch

    def save(self, engine: Engine | None, seconds: Callable[[float], float], *, wait: bool) -> None:
        """Save the state of training; every rank must call it.

        Args:
            engine: What trains, if it is ours.
            seconds: Returns how long the current epoch has taken until a time, in the middle of one [s].
            wait: Whether to wait until it is whole. If not, it may be written in the background, and a later
                report names it.
        """
        began, attempt = time.monotonic(), self._attempt
        header: dict[str, Any] = {"epoch": attempt.epoch, "step": self._own.step}
        if engine is not None:
            header |= engine.header()
        elif self._own.saves:
            header["batch_size"] = attempt.spec.training.batch_size
        header["replicas"], header["batches"] = attempt.replicas, attempt.batches
        header["seconds"] = seconds(began) if header["step"] else 0.0
        path = attempt.directory / checkpoint_name(attempt.epoch, header["step"])
        tensors = engine.tensors() if engine else {}
        self.note(None)
        self._saved = (path, attempt.epoch)
        self._unnoted.append(self._saved)
        if self._own.saves:
            self._own.write(path, header, self._group())
        elif attempt.is_main and (wait or not tensors or attempt.spec.share_at):
            write_checkpoint(path, tensors, header)
        elif attempt.is_main:
            copies, wait_for_copies = copied(tensors)

            def write() -> None:
                wait_for_copies()
                write_checkpoint(path, copies, header)

            self._saver.start(write)
        self.note(MOMENT_S)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began, self._saver.longest_s)

    def note(self, patience_s: float | None) -> None:
        """Note the checkpoints that are whole now, or after so many seconds; None: wait for all."""
        if not self._saver.finish(patience_s):
            return
        whole = [(path, epoch) for path, epoch in self._unnoted if path.exists()]
        for path, epoch in whole:
            self._attempt.add_checkpoint(path, epoch)
        self._unnoted = [saved for saved in self._unnoted if saved not in whole]

    def find(self, place: str) -> Path:
        """Return a checkpoint's directory, once rank 0 has fetched it if need be; every rank must call it."""
        if is_url(place):
            if self._attempt.is_main:
                self._attempt.find_checkpoint(place)
            self._group().agree([0])
        return self._attempt.find_checkpoint(place)

    def resumable_header(self, path: Path, names: Iterable[str]) -> dict[str, Any]:
        """Return the header of a checkpoint from which this attempt can go on.

        Args:
            path: The checkpoint.
            names: Fields that it must have. Without any, one that no loop has given is as good as none.

        Raises:
            CheckpointError: If it is of another place in training, or lacks a field.
        """
        attempt, names = self._attempt, tuple(names)
        header = read_header(path)
        if not names and GIVEN not in header:
            return header
        check_header(path, header, (*names, "epoch", "step", "replicas", "seconds"))
        if header["epoch"] != attempt.epoch:
            raise CheckpointError(
                str(path), f"it is of epoch {header['epoch']}, but the job resumes at epoch {attempt.epoch}"
            )
        batches = header.get("batches", header["replicas"])  # as many, before these could differ
        was, now = (header["replicas"], batches), (attempt.replicas, attempt.batches)
        if header["step"] and (*was, header["batch_size"]) != (*now, attempt.spec.training.batch_size):
            raise CheckpointError(str(path), "replicas or batch size changed in the middle of an epoch")
        return header
