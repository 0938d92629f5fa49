r"""The control channel: rank 0 and the controller exchange lines through the launcher's stdin and stdout.

The rules were measured on MPICH, Open MPI and srun. Stdout and stdin belong to the channel alone: what a
program prints goes to stderr, and what it reads is empty. A line is written at once and begins with RS
(0x1e), so that anything before it can be cut off. Stdin is always drained, because hydra ends a launch
that leaves 64 KiB of it unread. A controller that is silent for too long, or whose pipe ends, is taken
for dead.
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
STOP_POLL_S = 0.5  # on a file system that all trials share


class OwnDescriptor:
    """A descriptor that a training function may close, and whose number may then be a file of its own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = self._open_file()

    def is_ours(self) -> bool:
        """Return whether the number still stands for what it stood for."""
        return self._file is not None and self._open_file() == self._file

    def _open_file(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self.number)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def claim_stdout() -> OwnDescriptor:
    """Return a private copy of stdout. Whatever is printed from now on goes to stderr."""
    control = OwnDescriptor(os.dup(STDOUT))
    os.dup2(STDERR, STDOUT)
    return control


def claim_stdin() -> OwnDescriptor:
    """Return a private copy of stdin. Whoever reads stdin from now on finds its end.

    Programs started by a training function inherit stdin, and some read it without need. They could take
    the message for which the trial waits.
    """
    control, empty = OwnDescriptor(os.dup(STDIN)), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, STDIN)
    os.close(empty)
    return control


def say(descriptor: OwnDescriptor, op: str, message: Mapping[str, Any]) -> None:
    """Send one line. A controller that is gone does not stop the training."""
    line = RECORD_SEPARATOR + json.dumps({"op": op, **message}).encode() + b"\n"
    try:
        while line and descriptor.is_ours():
            line = line[os.write(descriptor.number, line) :]
    except OSError:  # the attempt's files have it too, and the agent looks at them
        return


def watch_for_stop(directory: Path, on_preempt: Callable[[str], None]) -> None:
    """Without a channel, a file asks the job to leave: call back with its text once it exists."""

    def watch() -> None:
        while True:
            try:
                on_preempt((directory / STOP).read_text(encoding="utf-8"))
            except OSError:
                time.sleep(STOP_POLL_S)
            else:
                return

    threading.Thread(target=watch, name="stop-file", daemon=True).start()


class ControlChannel:
    """The rank's end of the channel. A thread listens from the beginning.

    Args:
        stdin: To read from.
        stdout: To write to.
        lease_s: Silence of the controller after which it is taken for dead [s].
        on_preempt: Called by the listening thread with the reason to leave.
        on_lost: Called by it too, with the reason, when nobody is left whose answer could be heard.
    """

    def __init__(
        self,
        stdin: OwnDescriptor,
        stdout: OwnDescriptor,
        *,
        lease_s: float,
        on_preempt: Callable[[str], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._stdin, self._stdout = stdin, stdout
        self._lease_s, self._on_preempt, self._on_lost = lease_s, on_preempt, on_lost
        # Not a SimpleQueue: its `get` waits forever if a signal comes as its timeout ends (Python 3.11).
        self._answers: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="control-channel", daemon=True)
        self._thread.start()

    def send(self, op: str, message: Mapping[str, Any] | None = None) -> None:
        """Send one line (`say`)."""
        say(self._stdout, op, message or {})

    def answer(self, timeout_s: float, unless: Callable[[], bool]) -> Mapping[str, Any] | None:
        """Return the next ``go`` or ``leave``; None after the timeout, or soon after ``unless`` is true."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not unless():
            try:
                return self._answers.get(timeout=POLL_S)
            except queue.Empty:
                continue
        return None

    @property
    def is_deaf(self) -> bool:
        """Whether no answer will ever come."""
        return not self._thread.is_alive() and self._answers.empty()

    def _run(self) -> None:
        try:
            self._on_lost(self._listen())
        except (OSError, ValueError) as error:
            self._on_lost(f"the control channel broke: {error}")

    def _listen(self) -> str:
        """Return why nothing more will be heard."""
        buffer, last_message_at, is_silent = b"", time.monotonic(), False
        poller = select.poll()
        poller.register(self._stdin.number, select.POLLIN)
        while True:
            ready = poller.poll(1000 * min(1.0, self._lease_s / 4))
            if not self._stdin.is_ours():
                return "the training function closed the control channel"
            if ready:
                data = os.read(self._stdin.number, 65536)
                if not data:
                    return "the controller closed the control channel"
                last_message_at = time.monotonic()
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._on_message(line)
            elif not is_silent and time.monotonic() - last_message_at > self._lease_s:
                is_silent = True
                self._on_lost(f"the controller was silent for {self._lease_s:g} s")

    def _on_message(self, line: bytes) -> None:
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
                pass  # a heartbeat, or a message of a later version
