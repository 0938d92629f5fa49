"""Whether ranks have stalled: no step for far longer than one of their epochs has ever taken.

Before the first epoch of a trial those of other trials tell, start included. While there are none, ranks that
have taken steps may be silent for half an hour; others, whose first step or whole epoch may take long, for
six hours.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.protocol import STACKS_SIGNAL, STEPS, EpochReport, JobSpec, ProtocolError, read_epochs
from parsl_rasda.types import JobId

_EPOCHS = 10.0  # so many times the longest epoch without a step is a stall
_EARLIER_ATTEMPTS = 3  # that are asked how long an epoch takes
_OTHER_TRIALS = 64  # that are asked how long the first epoch takes
# Of silence, while nobody has finished an epoch: after a step, and before the first one.
_UNKNOWN_S, _UNSTARTED_S = 1800.0, 6 * 3600.0
_LOOK_S = 8.0  # a watcher that was not called for longer was stopped itself


class StallWatch:
    """Knows when the ranks of a job were last heard to take a step."""

    def __init__(self, order: JobSpec, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to watch; earlier attempts of the trial say how long an epoch takes."""
        self._order, self._clock = order, clock
        self._steps = Path(order.directory) / STEPS
        self._steps_at = 0.0
        self._moved_at = self._looked_at = self._clock()
        self._is_waiting = self._takes_steps = False
        self._longest_s = max((self._here_s(each) for each in _earlier(order)), default=0.0)
        self._first_s = 0.0  # how long others took from their start to their first epoch
        self._ask_at = self._moved_at + order.training.stall_after_s

    def heard(self, message: Mapping[str, Any]) -> None:
        """Take note of a message of rank 0."""
        self._moved_at = self._clock()
        self._takes_steps |= message.get("op") == "step"
        if message.get("op") == "epoch":
            self._is_waiting = self._order.interactive
            self._longest_s = max(self._longest_s, float(message["seconds"]))

    def answered(self) -> None:
        """Note that ranks that waited at a boundary train on."""
        self._moved_at, self._is_waiting = self._clock(), False

    @property
    def stalled_s(self) -> float | None:
        """How long there has been no step [s], if that is too long; else None."""
        now = self._clock()
        if now - self._looked_at > _LOOK_S:
            self._moved_at += now - self._looked_at
        self._looked_at = now
        if self._is_waiting or now - self._moved_at <= self._order.training.stall_after_s:
            return None
        longest_s = self._longest_s or self._first_epoch_s(now)
        unknown_s = _UNKNOWN_S if self._takes_steps else _UNSTARTED_S
        most_s = _EPOCHS * longest_s if longest_s else unknown_s
        if now - self._moved_at <= most_s or self._has_stepped():
            return None
        return now - self._moved_at

    def _first_epoch_s(self, now: float) -> float:
        """Return how long other trials took to their first epoch [s], or 0; asked now and then."""
        if now >= self._ask_at:
            self._ask_at = now + self._order.training.stall_after_s
            self._first_s = max((self._here_s(each) for each in _first_of_others(self._order)), default=0.0)
        return self._first_s

    def _has_stepped(self) -> bool:
        """Look at the file that ranks without a channel touch."""
        try:
            at = self._steps.stat().st_mtime
        except OSError:
            return False
        if at != self._steps_at:
            self._steps_at, self._moved_at, self._takes_steps = at, self._clock(), True
            return True
        return False

    def _here_s(self, epoch: tuple[float, int]) -> float:
        """Return how long an epoch takes here, at worst, that took so long on so many slots."""
        seconds, width = epoch
        return seconds * max(1.0, width / self._order.world_size)


def dump_stacks(mark: str) -> None:
    """Have every rank on this node, and by its launcher those elsewhere, write its stacks to the log."""
    for process in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, mark):
        if _catches(process.pid, STACKS_SIGNAL):
            try:
                os.kill(process.pid, STACKS_SIGNAL)
            except (ProcessLookupError, PermissionError):
                continue


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def _earlier(order: JobSpec) -> list[tuple[float, int]]:
    """Return seconds and slots of the epochs of the last attempts."""
    trials = Path(order.directory).parent
    attempts = range(max(1, order.attempt - _EARLIER_ATTEMPTS), order.attempt)
    epochs = (e for n in attempts for e in read_epochs(trials / f"attempt-{n}", JobId(order.trial, n)))
    return [(e.seconds, len(e.slots)) for e in epochs]


def _first_of_others(order: JobSpec) -> Iterator[tuple[float, int]]:
    """Yield seconds, from the start of the job, and slots of first epochs of other trials."""
    folders = Path(order.directory).parent.parent.glob("*/attempt-*")
    for folder in islice((f for f in folders if f.parent.name != order.trial), _OTHER_TRIALS):
        try:
            began = (folder / "order.json").stat().st_mtime
            with (folder / "epochs.jsonl").open(encoding="utf-8") as file:
                first = EpochReport.from_json(json.loads(file.readline()))
        except (OSError, ValueError, KeyError, TypeError, ProtocolError):
            continue
        yield first.at - began, len(first.slots)
