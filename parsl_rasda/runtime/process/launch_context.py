"""Which rank this process is, and which GPU is its own.

Read from the environment that the launcher gives, before torch is imported: a mask that is set
later does nothing. Refuses to guess when the launcher and the order disagree.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from parsl_rasda.devices import device_mask
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import JobSpec

# Rank, size and local rank, in the order to look: mpiexec ranks inside a Slurm job inherit the
# SLURM_PROCID of the proxy that started them, and a process alone (`launch.process`) that of its pilot.
LAUNCHERS = (
    ("PARSL_RASDA_RANK", "PARSL_RASDA_SIZE", "PARSL_RASDA_LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """One process of a launch.

    Attributes:
        rank: Index of this process.
        size: Number of processes; 1 where slots are only logical, whatever the order's world size.
        device_index: Which of the visible devices is this rank's.
        environment: Variables to set before torch is imported.
        slot: ``node:gpu`` as this rank itself sees it.
        one_node: Whether all ranks are on one node.
        local_size: Number of processes on this one's node.
    """

    rank: int
    size: int
    device_index: int
    environment: Mapping[str, str]
    slot: str
    one_node: bool
    local_size: int = 1

    @property
    def gpu(self) -> int:
        """The number of its slot on the node."""
        return int(self.slot.rpartition(":")[2])


def launch_context(order: JobSpec, environ: Mapping[str, str]) -> LaunchContext:
    """Return what the launcher and the order say about this process.

    Raises:
        InvalidSettingError: If the launcher started another number of ranks than was ordered.
    """
    rank, size, local_rank = _launched(order, environ)
    if order.slots and len(order.slots) != order.world_size:
        raise InvalidSettingError("slots", order.slots, f"one per rank, {order.world_size} in all")
    slots = [_parted(slot) for slot in order.slots] or [("", local_rank)] * size
    node, gpu = slots[rank]
    gpus = [g for n, g in slots if n == node]
    environment = device_mask(order.accelerator, gpus, environ) if order.slots else {}
    index = gpus.index(gpu) if environment else local_rank
    return LaunchContext(
        rank=rank,
        size=size,
        device_index=index,
        environment=environment,
        slot=f"{_seen_node(node, {n for n, _ in slots}, environ)}:{gpu}",
        one_node=len({n for n, _ in slots}) == 1,
        local_size=min(size, len(gpus)),
    )


def launched(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """Return rank, size and local rank as the launcher has set them; those of a process alone if none has."""
    for rank, size, local in LAUNCHERS:
        if rank in environ and size in environ:
            return int(environ[rank]), int(environ[size]), int(environ.get(local, "0"))
    return 0, 1, 0


def _launched(order: JobSpec, environ: Mapping[str, str]) -> tuple[int, int, int]:
    found = launched(environ)
    logical = order.accelerator == "none" and found[1] == 1
    if found[1] != order.world_size and not logical:
        raise InvalidSettingError(
            "ranks started by the launcher", found[1], f"{order.world_size}, as ordered"
        )
    return found


def _parted(slot: str) -> tuple[str, int]:
    node, _, gpu = slot.rpartition(":")
    return node, int(gpu)


def _seen_node(claimed: str, nodes: set[str], environ: Mapping[str, str]) -> str:
    """Return the node this process runs on, in the words of the order where they can be matched."""
    hostname = socket.gethostname()
    for name in (environ.get("SLURMD_NODENAME"), hostname, hostname.partition(".")[0]):
        if name in nodes:
            return str(name)
    return claimed or hostname
