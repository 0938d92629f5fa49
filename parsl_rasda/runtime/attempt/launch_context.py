"""Which rank this process is, and which GPU belongs to it.

Both are read from the launcher's environment before torch is imported, because a device mask that is set
later has no effect. If the launcher and the job disagree, this module refuses to guess.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from parsl_rasda.devices import BACKEND_VARIABLE, DEVICE_MASKS, device_mask, own_instance
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import JobSpec

# Rank, size and local rank, in order of precedence: inside a Slurm job, ranks of mpiexec inherit the
# SLURM_PROCID of the proxy that started them, and a single process (`launch.process`) that of its pilot.
# Cray's PALS and PMIx name no size: the job's counts. Open MPI and srun set PMIX_RANK beside their own.
LAUNCHERS = (
    ("PARSL_RASDA_RANK", "PARSL_RASDA_SIZE", "PARSL_RASDA_LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("PALS_RANKID", None, "PALS_LOCAL_RANKID"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("PMIX_RANK", None, "PMIX_LOCAL_RANK"),
)


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """One process of a launch.

    Attributes:
        rank: Index of this process.
        size: Number of processes. It is 1 where slots are only logical, whatever the job's world size.
        device_index: Index of this rank's device among the visible ones.
        environment: Variables to set before torch is imported.
        slot: ``node:gpu`` as this rank sees it.
        one_node: Whether all ranks are on one node.
        local_size: Number of processes on this node.
        node_rank: Index of this node among those of the job, in rank order.
        nodes: Number of these nodes.
    """

    rank: int
    size: int
    device_index: int
    environment: Mapping[str, str]
    slot: str
    one_node: bool
    local_size: int = 1
    node_rank: int = 0
    nodes: int = 1

    @property
    def gpu(self) -> int:
        """The number of this rank's slot on the node."""
        return int(self.slot.rpartition(":")[2])


def launch_context(spec: JobSpec, environ: Mapping[str, str]) -> LaunchContext:
    """Return what the launcher and the job say about this process.

    Raises:
        InvalidSettingError: If the launcher started another number of ranks than the job has, or several on
            parts of GPUs.
    """
    rank, size, local_rank = _launched(spec, environ)
    if spec.slots and len(spec.slots) != spec.world_size:
        raise InvalidSettingError("slots", spec.slots, f"one per rank, {spec.world_size} in all")
    slots = [_parted(slot) for slot in spec.slots] or [("", local_rank)] * size
    node, gpu = slots[rank]
    gpus = [g for n, g in slots if n == node]
    nodes = list(dict.fromkeys(n for n, _ in slots))
    environment = device_mask(spec.accelerator, gpus, environ) if spec.slots else {}
    index = gpus.index(gpu) if environment else local_rank
    if environment and (instance := own_instance(environment, index)):
        if size > 1 and environ.get(BACKEND_VARIABLE) != "gloo":
            raise InvalidSettingError(
                "ranks of one trial on MIG instances", size, "1, for NCCL joins no more"
            )
        environment, index = {**environment, DEVICE_MASKS["cuda"]: instance}, 0
    return LaunchContext(
        rank=rank,
        size=size,
        device_index=index,
        environment=environment,
        slot=f"{_seen_node(node, set(nodes), environ)}:{gpu}",
        one_node=len(nodes) == 1,
        local_size=min(size, len(gpus)),
        node_rank=nodes.index(node) if size > 1 else 0,
        nodes=len(nodes) if size > 1 else 1,
    )


def launched(environ: Mapping[str, str], ordered: int = 1) -> tuple[int, int, int]:
    """Return rank, size and local rank as set by the launcher, or those of a single process.

    A variable without a value is one that a container was told to pass on, and that is not set.

    Args:
        environ: Of the rank.
        ordered: How many ranks the job has; counts where the launcher names no size.
    """
    for rank, size, local in LAUNCHERS:
        found = str(ordered) if size is None else environ.get(size)
        if environ.get(rank) and found:
            return int(environ[rank]), int(found), int(environ.get(local) or "0")
    return 0, 1, 0


def _launched(spec: JobSpec, environ: Mapping[str, str]) -> tuple[int, int, int]:
    found = launched(environ, spec.world_size)
    if found[0] >= found[1]:
        allowed = f"ranks from 0 to {spec.world_size - 1}, as ordered"
        raise InvalidSettingError("rank given by the launcher", found[0], allowed)
    logical = spec.accelerator == "none" and found[1] == 1
    if found[1] != spec.world_size and not logical:
        raise InvalidSettingError("ranks started by the launcher", found[1], f"{spec.world_size}, as ordered")
    return found


def _parted(slot: str) -> tuple[str, int]:
    node, _, gpu = slot.rpartition(":")
    return node, int(gpu)


def _seen_node(claimed: str, nodes: set[str], environ: Mapping[str, str]) -> str:
    """Return this process's node, by the name that the job uses for it where one matches."""
    hostname = socket.gethostname()
    for name in (environ.get("SLURMD_NODENAME"), hostname, hostname.partition(".")[0]):
        if name in nodes:
            return str(name)
    return claimed or hostname
