"""How each container runtime spells "run this inside": the words before a rank's program.

Ranks keep the network, the processes and the shared memory of their node: they meet their peers by its
addresses, and its agent ends them. Pure: nothing is started here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import assert_never

from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.study.containers import ContainerSpec

CONTAINED_VARIABLE = "PARSL_RASDA_CONTAINED"  # as in `runtime.process.forkserver.client`
_SOCKETS = "/tmp"  # noqa: S108 - ranks meet their fork server in a folder there
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED")
_GPU_FLAGS = {"cuda": ("--nv",), "rocm": ("--rocm",)}
# What tells a rank who it is and what it may see. Runtimes that pass no environment on are told to.
_NAMES = (
    *("PARSL_RASDA_RUN", "PARSL_RASDA_JOB", "PARSL_RASDA_RANK", "PARSL_RASDA_SIZE", CONTAINED_VARIABLE),
    *("PARSL_RASDA_FORKSERVERS", "PARSL_RASDA_FORKSERVER_IDLE_S", *_THREADS),
    *("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_RANKID", "PALS_LOCAL_RANKID"),
    *("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURMD_NODENAME"),
    *("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", *DEVICE_MASKS.values()),
)


def exec_words(
    container: ContainerSpec, accelerator: str, folders: Iterable[str], environment: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the words that go before a program; none where srun itself enters the container.

    Args:
        container: As the site file has it.
        accelerator: Of the site.
        folders: What must be seen inside beside the container's own binds.
        environment: Names of variables that must be set inside.

    Source:
        apptainer-exec(1), sarus-run(1), podman-run(1) and podman-hpc, ``enroot start --help``.
    """
    binds = (*container.binds, *_unbound(container, folders))
    names = sorted({*_NAMES, *environment})
    image, options = container.image, container.options
    match container.runtime:
        case "apptainer" | "singularity" as runtime:
            gpu = _GPU_FLAGS.get(accelerator, ())
            return (runtime, "exec", *gpu, *_flags("--bind", binds), *options, image)
        case "sarus":
            return ("sarus", "run", *map(_sarus_mount, binds), *options, image)
        case "podman-hpc":
            return (
                *("podman-hpc", "run", "--rm", "--interactive"),
                *(("--gpu",) if accelerator == "cuda" else ()),
                *("--network=host", "--ipc=host", "--pid=host", "--userns=keep-id"),
                *(f"--env={name}" for name in names),
                *(f"--volume={bind if ':' in bind else f'{bind}:{bind}'}" for bind in binds),
                *options,
                image,
            )
        case "enroot":
            mounts = (bind if ":" in bind else f"{bind}:{bind}" for bind in binds)
            return ("enroot", "start", *_flags("--mount", mounts), *_flags("--env", names), *options, image)
        case "srun":
            return ()
        case _ as never:
            assert_never(never)


def step_options(container: ContainerSpec, folders: Iterable[str]) -> tuple[str, ...]:
    """Return the options with which srun itself enters the container; none under other runtimes.

    Source:
        pyxis, ``srun --help``; the container engine of CSCS, ``--environment``.
    """
    if not container.is_of_srun:
        return ()
    if container.has_own_mounts:
        return (f"--environment={container.image}", *container.options)
    binds = (*container.binds, *_unbound(container, folders))
    mounts = ",".join(bind if ":" in bind else f"{bind}:{bind}" for bind in binds)
    return (f"--container-image={container.image}", f"--container-mounts={mounts}", *container.options)


def _flags(name: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from (name, value)


def _sarus_mount(bind: str) -> str:
    source, destination, option = (*bind.split(":"), "", "")[:3]
    read_only = ",readonly" if option == "ro" else ""
    return f"--mount=type=bind,source={source},destination={destination or source}{read_only}"


def _unbound(container: ContainerSpec, folders: Iterable[str]) -> Iterator[str]:
    """Yield the folders that no bind has yet at their own place, without those inside others."""
    there = [bind for bind in container.binds if len({*bind.split(":")[:2]}) == 1]
    seen = [PurePosixPath(bind.partition(":")[0]) for bind in there]
    for folder in sorted({_SOCKETS, *filter(None, folders)}):
        path = PurePosixPath(folder)
        if not any(path.is_relative_to(each) for each in seen):
            seen.append(path)
            yield folder
