"""Writes checkpoints while training goes on: one at a time, in a thread.

What is written is a copy in memory, so that training may change the weights meanwhile. A write that takes
but a moment is waited for: the epoch's report can then name it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MOMENT_S = 0.2


class Saver:
    """One thread at most, and what became of it.

    Attributes:
        longest_s: Time of the slowest write so far [s].
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin a write, after the one before."""
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self, patience_s: float | None = None) -> bool:
        """Wait for the write that is going on. Returns whether it is done, or there was none.

        Raises:
            Exception: What the write has raised.
        """
        if self._thread is None:
            return True
        self._thread.join(patience_s)
        if self._thread.is_alive():
            return False
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _run(self, write: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            write()
        except BaseException as error:  # noqa: BLE001 - it is raised where the write is waited for
            self._error = error
        self.longest_s = max(self.longest_s, time.monotonic() - began)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
