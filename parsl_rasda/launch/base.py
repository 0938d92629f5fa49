"""The port of a launcher: how one launcher spells "start these ranks on these nodes".

Implementations are pure: they compose argv, unquoted, and start nothing. The executable definition
is `parsl_rasda.testing.launchers.LauncherContract`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.types import Placement

# A rank's arithmetic must not depend on how many ranks share the node (docs/exactness.md): every
# library that counts cores is told the same number at any world size.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# NumPy's starts its threads when it is imported, and no thread survives a fork: forked ranks have one.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
TORCH_VARIABLE = "PARSL_RASDA_TORCH"  # as in `runtime.process.forkserver.client`


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """What a site says about its launches, whatever the placement.

    Attributes:
        options: Extra flags, placed after ours. srun and hydra heed the last of two that contradict each
            other; Open MPI refuses a flag that it is given twice.
        threads_per_rank: Threads of each rank's arithmetic.
        accelerator: ``cuda``, ``rocm``, ``xpu``, ``cpu`` or ``none``.
        gpus_per_node: GPUs of a whole node, of which every step must see all; 0 if unknown.
        nodes_differ: Nodes of the allocation have different numbers of GPUs.
        local: All slots lie on the machine where the launcher runs; node names mean nothing to it.
        environment: Variables that every rank must have.
        directory: Where files of `LaunchCommand` will lie: the attempt's directory.
        is_contained: Ranks run in a container, which may take along what they start.
    """

    options: tuple[str, ...] = ()
    threads_per_rank: int = 1
    accelerator: str = "none"
    gpus_per_node: int = 0
    nodes_differ: bool = False
    local: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "."
    is_contained: bool = False

    @property
    def has_gpus(self) -> bool:
        """Whether slots are devices that a batch system hands out."""
        return self.accelerator in DEVICE_MASKS


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """One launch, ready to be started from the attempt's directory.

    Attributes:
        argv: The whole command, unquoted.
        environment: Variables to add to those of the process that starts it.
        files: Contents by absolute path, to be written before the start.
        step: Name of the batch system's own job step, which must be cancelled there when the launcher
            has been killed; empty if there is none.
        lasting: Words by which a process is started on one node, ``{node}``, in a launch of its own that
            lasts until that process ends; empty where what a rank starts may outlive its launch.
        before: A program to run to its end before the launch, whether it succeeds or not; empty if there is
            none. Runners add it.
        cancel: A program that ends the launch in the batch system when the launcher has been killed; empty if
            that ends it anyhow.
        fills_nodes: It has all slots of its nodes, so that nothing else of the study draws from them. Runners
            say so.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    step: str = ""
    lasting: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    cancel: tuple[str, ...] = ()
    fills_nodes: bool = False


class MpiexecOptions(BaseModel):
    """The options of a launcher whose program sites name differently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str = Field(
        "mpiexec", min_length=1, description="The program, for example mpiexec.hydra or mpirun."
    )


class Launcher(Protocol):
    """One launcher's dialect."""

    @property
    def name(self) -> str:
        """The name a site file uses, in ``mpi_launcher``."""
        ...

    def command(
        self, placement: Placement, program: tuple[str, ...], settings: LaunchSettings
    ) -> LaunchCommand:
        """Return the command that starts ``program`` once per slot, in the order of the slots."""
        ...


def rank_environment(settings: LaunchSettings) -> dict[str, str]:
    """Return the variables every rank has under every launcher; the site's own win."""
    threads = dict.fromkeys(_THREAD_VARIABLES, str(settings.threads_per_rank))
    torch = {TORCH_VARIABLE: "0"} if settings.accelerator == "none" else {}
    return {**threads, **_ONE_THREAD, **torch, "PYTHONUNBUFFERED": "1", **settings.environment}


def step_name(directory: str) -> str:
    """Return the name of a launch in its batch system: trial, attempt, and a digest of their directory.

    Another study in the same allocation or job array has trials and attempts of the same names.
    """
    name = "-".join(PurePosixPath(directory).parts[-2:])
    digest = hashlib.blake2b(directory.encode(), digest_size=4).hexdigest()
    return f"{name}-{digest}" if name else ""


def steady(launcher: str, placement: Placement, *, evenly: bool = False) -> int:
    """Return with how many ranks a launcher fills each node of an uneven placement before the next.

    Args:
        launcher: Its name, for errors.
        placement: Whose nodes get different numbers.
        evenly: It can place only the same number on each.

    Raises:
        InvalidSettingError: If it would put ranks on other nodes than those that were placed.
    """
    *counts, last = [len(node.gpus) for node in placement.nodes]
    if evenly or len({*counts}) > 1 or last > counts[0]:
        found = ", ".join(f"{len(node.gpus)} on {node.node}" for node in placement.nodes)
        raise InvalidSettingError(
            "mpi_launcher", f"{launcher}, to place {found} ranks", "hydra, openmpi or srun"
        )
    return counts[0]


def ranks_per_node(placement: Placement) -> int | None:
    """Return how many ranks each node gets, or None if nodes get different numbers."""
    counts = {len(node.gpus) for node in placement.nodes}
    return counts.pop() if len(counts) == 1 else None
