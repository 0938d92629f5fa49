"""What to change where a launch failed, told from what it left behind: pure."""

from __future__ import annotations

import re

from parsl_rasda.plugins import kind_of
from parsl_rasda.study import SiteBase

# The first that is found counts; {launcher}, {accelerator} and {variable} are the site's.
_ADVICE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (
            r"Invalid generic resource|Invalid Trackable RESource",
            "srun was refused the GPUs of its step: the pilot did not ask for them (provider: gpus_per_node "
            "or gres), or this Slurm counts none (launcher_options: [--gres=none])",
        ),
        (
            r"More processors requested than permitted|Requested node configuration is not available",
            "the pilot has fewer cores than a step wants: ask the provider for whole nodes (exclusive: true, "
            "or cores_per_node), or lower threads_per_rank",
        ),
        (
            r"cannot start '\S+': No such file|(srun|mpiexec|mpirun|flux|ibrun): (command )?not found",
            "there is no {launcher} on the pilot's PATH: load its module in worker_init, or set mpi_launcher",
        ),
        (
            r"Host key verification failed|Permission denied \(publickey|ssh: (connect|Could not resolve)",
            "the launcher reaches other nodes by ssh, which is not let in: set mpi_launcher to the batch "
            "system's own (srun), or launcher_options: [-launcher, ...]",
        ),
        (
            r"The site says `accelerator: |No (CUDA|HIP|XPU) (GPUs|devices) are available"
            r"|Torch not compiled with (CUDA|XPU)|Found no NVIDIA driver|no (CUDA|ROCm)-capable device",
            "torch there sees no {accelerator} device: install one built for it (worker_init, container), "
            "or ask the provider for GPUs",
        ),
        (
            r"No module named '?parsl_rasda\b",
            "the ranks' Python lacks parsl_rasda: worker_init or `python` leads to another environment",
        ),
        (
            r"no socket interface found|Unable to (find|resolve) .*interface|[Nn]o such device.*ifname",
            "an interface of `environment` does not exist on the nodes ({variable}): `ip -br addr` there",
        ),
        (
            r"AF_UNIX path too long",
            "TMPDIR there is too long for a socket's path: `export TMPDIR=/tmp` in worker_init",
        ),
        (
            r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]",
            "a disk or a quota is full: work_dir, TMPDIR or home",
        ),
        (
            r"unrecognized (option|argument)|invalid option|unknown option|Unknown argument",
            "{launcher} does not know a word of its command: look at launcher_options",
        ),
        (
            r"ranks started by the launcher",
            "the launcher starts every rank alone: it belongs to another MPI or lacks its PMI (mpi_launcher, "
            "launcher_options: [--mpi=none])",
        ),
    )
)


# Labels of torch's versions, as in 2.13.0+cpu, that are of builds for something else.
_FOREIGN_BUILDS = {"cuda": ("cpu", "rocm", "xpu"), "rocm": ("cpu", "cu", "xpu"), "xpu": ("cpu", "cu", "rocm")}


def torch_advice(version: str | None, site: SiteBase) -> str:
    """Return what to change about the torch that a site's environment has; nothing if it may do."""
    if site.accelerator == "none":
        return ""
    if version is None:
        return "install torch in the environment that worker_init activates"
    label = version.partition("+")[2]
    if label.startswith(_FOREIGN_BUILDS.get(site.accelerator, ())):
        return f"this torch is built for {label}, not for {site.accelerator}: install the other build"
    return ""


def advice_for(cause: str, site: SiteBase) -> str:
    """Return what to change after a launch that failed for a cause."""
    launcher = kind_of(site.mpi_launcher)
    named = ", ".join(n for n in site.environment if n.endswith("_SOCKET_IFNAME")) or "none is set"
    for pattern, advice in _ADVICE:
        if pattern.search(cause):
            return advice.format(launcher=launcher, accelerator=site.accelerator, variable=named)
    return f"look at mpi_launcher ({launcher}) and its log"
