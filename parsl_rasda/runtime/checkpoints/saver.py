"""Checkpoints written in the background: one at a time, by a thread.

The thread writes a copy in memory, so that training can change the weights in the meantime. A short write
is waited for, because the epoch's report can then name the checkpoint.
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
    """At most one thread that writes, and its result.

    Attributes:
        longest_s: Duration of the slowest write so far [s].
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Start a write once the one before has ended."""
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self, patience_s: float | None = None) -> bool:
        """Wait for the current write, if there is one, and return whether none is left.

        Raises:
            Exception: Whatever the write has raised.
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
        except BaseException as error:  # noqa: BLE001 - `finish` raises it
            self._error = error
        self.longest_s = max(self.longest_s, time.monotonic() - began)


def copied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Return copies on the CPU, and a function that waits until they are whole.

    Those of a GPU's tensors are in pinned memory, which torch keeps for the next time. They are made while
    training goes on, which changes the tensors only after that.
    """
    import torch

    devices = {tensor.device for tensor in tensors.values() if tensor.device.type != "cpu"}
    copies = {name: _copy(tensor.detach()) for name, tensor in tensors.items()}
    events = [torch.get_device_module(device).current_stream(device).record_event() for device in devices]

    def wait() -> None:
        for event in events:
            event.synchronize()

    return copies, wait


def _copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.clone()
    import torch

    try:
        place = torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:  # the system pins no more
        return tensor.to("cpu", copy=True)
    return place.copy_(tensor, non_blocking=True)
