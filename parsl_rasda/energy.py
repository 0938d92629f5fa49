"""What the devices of a job have drawn on one node, by counters of the hardware; unknown stays unknown.

GPUs of NVIDIA count their energy in the driver (NVML, by `nvidia-ml-py` where it is installed). Cores are
counted as a package (RAPL, in `/sys/class/powercap`, which many sites let only root read); a job then gets
its share of the cores. A part of a GPU has no counter. Whatever a counter does, the job goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from parsl_rasda.atomic_files import create_file
from parsl_rasda.devices import DEVICE_MASKS, device_mask
from parsl_rasda.protocol import JobSpec

_POWERCAP = Path("/sys/class/powercap")
_MICRO, _MILLI = 1e-6, 1e-3


def nodes_of(order: JobSpec) -> tuple[str, ...]:
    """Return the nodes of a job, in rank order."""
    return tuple(dict.fromkeys(slot.rpartition(":")[0] for slot in order.slots))


class EnergyMeter:
    """Measures what a job draws on this node, from its making on."""

    def __init__(self, order: JobSpec, node: str, environ: Mapping[str, str] | None = None) -> None:
        """Begin to measure for the slots of a job.

        Args:
            order: The job.
            node: This node, as the job calls it.
            environ: Has the mask of the pilot, which numbers the slots.
        """
        slots = [slot.rpartition(":") for slot in order.slots]
        gpus = [int(gpu) for name, _, gpu in slots if name == node]
        self._told_at = _told_at(order, node)
        self._count: Callable[[], float | None] = lambda: None
        if order.accelerator == "cuda":
            mask = device_mask("cuda", gpus, os.environ if environ is None else environ)
            names = mask[DEVICE_MASKS["cuda"]].split(",")
            self._count = lambda: gpu_joules(names)
        elif order.accelerator == "cpu":
            share = min(1.0, len(gpus) / (os.cpu_count() or 1))  # slots are cores
            packages = Packages(_POWERCAP)
            self._count = lambda: None if (found := packages.joules()) is None else share * found
        self._begin = self._read()

    @classmethod
    def of_rank(cls, order: JobSpec, rank: int) -> Self | None:
        """Return a meter if a rank is the first on its node, and the order says that this one tells."""
        names = [slot.rpartition(":")[0] for slot in order.slots]
        if rank >= len(names) or names[rank] not in order.metered or names.index(names[rank]) != rank:
            return None
        return cls(order, names[rank])

    def joules(self) -> float | None:
        """Return what has been drawn since the beginning [J]; None if nobody knows."""
        now = self._read()
        if now is None or self._begin is None or now < self._begin:
            return None
        return now - self._begin

    def tell(self) -> None:
        """Leave what has been drawn for the agent, which is on another node (`told_joules`)."""
        drawn = self.joules()
        if drawn is not None:
            with suppress(OSError):
                create_file(self._told_at, repr(drawn))

    def _read(self) -> float | None:
        try:
            return self._count()
        except Exception:  # noqa: BLE001 - whatever a library or a driver raises, the job goes on
            return None


def told_joules(order: JobSpec, node: str) -> float | None:
    """Return what a job has drawn on a node [J], as a rank there has told, or None."""
    try:
        return float(_told_at(order, node).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _told_at(order: JobSpec, node: str) -> Path:
    return Path(order.directory) / f"energy-{nodes_of(order).index(node)}"


def gpu_joules(names: Sequence[str]) -> float | None:
    """Return what GPUs have drawn since their driver was loaded [J], or None if nobody knows.

    Args:
        names: As a mask has them: numbers, or UUIDs. A part of a GPU has no counter, nor has one that is
            there twice, for slots that share it.
    """
    if len(set(names)) < len(names):
        return None
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


def _name_of(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


class Packages:
    """The counters of all packages of a node, which begin anew now and then."""

    def __init__(self, folder: Path) -> None:
        """Find them; `folder` is that of the kernel."""
        # No parts of packages, nor the whole platform (`psys`), which contains them.
        zones = [path for path in sorted(folder.glob("intel-rapl:[0-9]*")) if path.name.count(":") == 1]
        self._counters = [path for path in zones if _name_of(path).startswith("package")]
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
