"""Standard output that never holds a run up: what a closed or a full pipe does not take is dropped.

A run holds allocations. Who reads its messages may have gone (`| head`), or be there and read nothing,
and neither must end the run nor make it wait.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PIECE = select.PIPE_BUF  # a pipe that is writable takes so much at once
_MOST_BYTES = 1 << 20  # of messages that wait for a reader
_PATIENCE_S = 20.0  # at the end, with a reader that takes nothing
_PAUSE_S = 0.05


class PatientOutput(io.RawIOBase):
    """A descriptor that is written to by a thread of its own; `write` neither blocks nor fails."""

    def __init__(self, descriptor: int, most_bytes: int | None = _MOST_BYTES) -> None:
        """Begin to write to a descriptor, which stays open.

        Args:
            descriptor: Where to.
            most_bytes: What would make more than that wait is dropped; None for no such limit.
        """
        self._descriptor, self._most_bytes = descriptor, most_bytes
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="rasda-output", daemon=True).start()

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, for child processes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        """Have data written soon, or drop it."""
        taken = bytes(data)
        with self._changed:
            if self._most_bytes is None or self._waiting + len(taken) <= self._most_bytes:
                self._pieces.extend(taken[at : at + _PIECE] for at in range(0, len(taken), _PIECE))
                self._waiting += len(taken)
                self._changed.notify_all()
        return len(taken)

    def drain(self, patience_s: float) -> None:
        """Return when all is written, or nothing has been for so long [s]."""
        with self._changed:
            before, since = self._waiting, time.monotonic()
            while self._waiting and time.monotonic() < since + patience_s:
                self._changed.wait(_PAUSE_S)
                if self._waiting != before:
                    before, since = self._waiting, time.monotonic()

    def _write_all(self) -> None:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces)
                piece = self._pieces[0]
            try:
                poller.poll()
                written = os.write(self._descriptor, piece)
            except BlockingIOError:
                time.sleep(_PAUSE_S)
                continue
            except OSError:  # nobody will read it
                written = len(piece)
            with self._changed:
                self._pieces.popleft()
                if written < len(piece):
                    self._pieces.appendleft(piece[written:])
                self._waiting -= written
                self._changed.notify_all()


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Let `sys.stdout` and `sys.stderr` be patient while the block lasts; at its end, wait for readers."""
    before = sys.stdout, sys.stderr
    outputs = [_patient(sys.stdout, None), _patient(sys.stderr, _MOST_BYTES)]
    sys.stdout, sys.stderr = (
        stream if output is None else _text(output, stream)
        for stream, output in zip(before, outputs, strict=True)
    )
    try:
        yield
    finally:
        give_up = time.monotonic() + _PATIENCE_S
        for output in outputs:
            if output is not None:
                # Who takes nothing of the one, and it is the same pipe, need not be waited for twice.
                output.drain(max(0.0, give_up - time.monotonic()) or _PAUSE_S)
        sys.stdout, sys.stderr = before


def occupy_standard_descriptors() -> None:
    """Open /dev/null in place of standard descriptors that are closed: else a file would take their place.

    Python has None in place of the streams of such descriptors; whoever prints need not know.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004  stderr
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _patient(stream: TextIO | None, most_bytes: int | None) -> PatientOutput | None:
    """Return a patient output in place of a stream; None if it is closed, or no file."""
    if stream is None:
        return None
    with contextlib.suppress(OSError):
        stream.flush()
    try:
        return PatientOutput(stream.fileno(), most_bytes)
    except (OSError, ValueError):  # it is in memory, in tests
        return None


def _text(output: PatientOutput, like: TextIO) -> TextIO:
    return io.TextIOWrapper(
        output,  # type: ignore[type-var]  # a raw file does, as for `python -u`
        encoding=like.encoding,
        errors=like.errors,
        write_through=True,
    )
