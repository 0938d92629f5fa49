r"""Rank 0 and the controller talk by lines through the launcher's stdin and stdout.

Rules, all measured on mpich, Open MPI and srun: stdout and stdin belong to the channel alone (whatever
prints lands on stderr, whoever reads finds the end), a line is one `os.write` that starts with RS (0x1e)
so that anything glued in front can be cut off, and stdin is drained at all times, for hydra ends a launch
that leaves 64 KiB of it unread. A controller that is silent for too long, or whose pipe ends, is taken for
dead.
"""

from __future__ import annotations

import json
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parsl_rasda.protocol import RECORD_SEPARATOR, STOP

STDIN, STDOUT, STDERR = 0, 1, 2
POLL_S = 0.05
STOP_POLL_S = 0.5  # a look at a file system that all trials share


def claim_stdout() -> int:
    """Return a private copy of stdout; everything printed goes to stderr from now on."""
    control = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    return control


def claim_stdin() -> int:
    """Return a private copy of stdin; whoever reads it from now on finds its end.

    Programs that a training function starts inherit it, and some read it unasked: the word that they
    swallow may be the one that the trial waits for.
    """
    control, nothing = os.dup(STDIN), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, STDIN)
    os.close(nothing)
    return control


def watch_for_stop(directory: Path, on_preempt: Callable[[str], None]) -> None:
    """Where there is no channel, a file says that the job is to leave: call back with what it says."""

    def watch() -> None:
        while True:
            try:
                on_preempt((directory / STOP).read_text())
            except OSError:
                time.sleep(STOP_POLL_S)
            else:
                return

    threading.Thread(target=watch, name="stop-file", daemon=True).start()


class ControlChannel:
    """The rank's end. A thread listens from the first moment on.

    Args:
        stdin: File descriptor to read from.
        stdout: File descriptor to write to.
        lease_s: Silence of the controller [s] that means it is gone.
        on_preempt: Called once, from the listening thread, with the reason to leave.
    """

    def __init__(self, stdin: int, stdout: int, *, lease_s: float, on_preempt: Callable[[str], None]) -> None:
        self._stdin, self._stdout = stdin, stdout
        self._lease_s, self._on_preempt = lease_s, on_preempt
        # Not a SimpleQueue: a signal at the end of its time-out makes its `get` wait for ever (Python 3.11).
        self._answers: queue.Queue[Mapping[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, name="control-channel", daemon=True).start()

    def say(self, op: str, message: Mapping[str, Any] | None = None) -> None:
        """Send one line; a controller that is gone does not stop the training."""
        line = RECORD_SEPARATOR + json.dumps({"op": op, **(message or {})}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._stdout, line) :]
        except OSError:  # the files of the attempt say the same, and the lease ends the job
            return

    def answer(self, timeout_s: float, unless: Callable[[], bool]) -> Mapping[str, Any] | None:
        """Return the next ``go`` or ``leave``; None after the time, or soon once ``unless`` is true."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not unless():
            try:
                return self._answers.get(timeout=POLL_S)
            except queue.Empty:
                continue
        return None

    def _listen(self) -> None:
        buffer, heard = b"", time.monotonic()
        while True:
            if select.select([self._stdin], [], [], min(1.0, self._lease_s / 4))[0]:
                data = os.read(self._stdin, 65536)
                if not data:
                    self._on_preempt("the controller closed the control channel")
                    return
                heard = time.monotonic()
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._take(line)
            elif time.monotonic() - heard > self._lease_s:
                self._on_preempt(f"the controller was silent for {self._lease_s:g} s")
                heard = float("inf")

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        match message:
            case {"op": "preempt"}:
                self._on_preempt("the controller asked for it")
            case {"op": "go" | "leave"}:
                self._answers.put(message)
            case _:
                pass  # a beat, or a word of a later version
