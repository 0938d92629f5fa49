"""What a job's devices have drawn, by counters of the hardware; unknown stays unknown.

GPUs of NVIDIA count their energy in the driver (NVML, by `nvidia-ml-py` where it is installed). Cores are
counted as a package (RAPL, in `/sys/class/powercap`, which many sites let only root read); a job then gets
its share of the cores. Whoever shares a GPU with others, has a part of one, or spans nodes, is not metered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from parsl_rasda.devices import DEVICE_MASKS, device_mask
from parsl_rasda.protocol import JobSpec

_POWERCAP = Path("/sys/class/powercap")
_MICRO, _MILLI = 1e-6, 1e-3


class EnergyMeter:
    """Measures from its making on."""

    def __init__(self, order: JobSpec, environ: Mapping[str, str] | None = None) -> None:
        """Begin to measure for the slots of a job on this node."""
        gpus = [int(slot.rpartition(":")[2]) for slot in order.slots]
        nodes = {slot.rpartition(":")[0] for slot in order.slots}
        self._read: Callable[[], float | None] = lambda: None
        if len(nodes) == 1 and order.accelerator == "cuda":
            mask = device_mask("cuda", gpus, os.environ if environ is None else environ)
            names = mask[DEVICE_MASKS["cuda"]].split(",")
            self._read = lambda: gpu_joules(names)
        elif len(nodes) == 1 and order.accelerator == "cpu":
            share = min(1.0, len(gpus) / (os.cpu_count() or 1))  # slots are cores
            packages = Packages(_POWERCAP)
            self._read = lambda: None if (found := packages.joules()) is None else share * found
        self._begin = self._read()

    def joules(self) -> float | None:
        """Return what has been drawn since the beginning [J]; None if nobody knows."""
        now = self._read()
        if now is None or self._begin is None or now < self._begin:
            return None
        return now - self._begin


def gpu_joules(names: Sequence[str]) -> float | None:
    """Return what GPUs have drawn since their driver was loaded [J], or None if nobody knows.

    Args:
        names: As a mask has them: numbers, or UUIDs. A part of a GPU has no counter.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdecimal()
                else pynvml.nvmlDeviceGetHandleByUUID(name)
                for name in names
                if not name.startswith("MIG-")
            ]
            if len(handles) != len(names):
                return None
            found = [int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles]
            return _MILLI * sum(found)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


class Packages:
    """The counters of all packages of a node, which begin anew now and then."""

    def __init__(self, folder: Path) -> None:
        """Find them; `folder` is that of the kernel."""
        self._counters = sorted(folder.glob("intel-rapl:[0-9]*"))
        self._counters = [
            path for path in self._counters if path.name.count(":") == 1
        ]  # no parts of packages
        self._last: dict[Path, int] = {}
        self._sum = 0

    def joules(self) -> float | None:
        """Return what they have drawn since the first call [J], or None if they cannot be read."""
        if not self._counters:
            return None
        try:
            for path in self._counters:
                now = int((path / "energy_uj").read_text(encoding="ascii"))
                last = self._last.get(path, now)
                if now < last:
                    last -= int((path / "max_energy_range_uj").read_text(encoding="ascii"))
                self._sum += now - last
                self._last[path] = now
        except (OSError, ValueError):
            return None
        return self._sum * _MICRO
