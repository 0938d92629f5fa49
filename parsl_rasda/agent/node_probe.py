"""What an allocation consists of, asked from inside it: nodes, GPUs, versions, its end.

Runs on the pilot. Imports neither torch nor Parsl.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from parsl_rasda.agent import pbs, slurm
from parsl_rasda.devices import DEVICE_MASKS, visible_devices

BEGAN_VARIABLE = "PARSL_RASDA_BEGAN"  # Unix time [s] at which a pilot's job script began
_PACKAGES = ("parsl_rasda", "parsl", "torch")
_COMMAND_TIMEOUT_S = 30
_CONTAINER_TIMEOUT_S = 300  # an image may have to be fetched, or unpacked
_MOST_WORDS = 600  # characters of a runtime's complaint
_ANSWER = "parsl_rasda-inside:"  # images may greet, too
_NODES = ("SLURM_JOB_NODELIST", "PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE")  # those of `node_names`
_KFD = Path("/sys/class/kfd/kfd/topology/nodes")


def describe_allocation(accelerator: str, container: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a backend must know of the allocation that this runs in, as plain JSON.

    Args:
        accelerator: What a slot is.
        container: The command that prints what `describe_inside` returns in the container of the ranks, with
            ``{node}`` for the first node; empty if there is none.

    ``nodes`` are in the batch system's order, ``gpus`` are those of the first node, ``granted`` those that
    the batch system gave of each node, by its name, or None where it does not tell, ``deadline`` is
    the Unix time [s] of the allocation's end or None where the batch system does not tell, ``age_s``
    [s] is how long ago the pilot's job script began. ``inside`` is what the container has, or ``error``.
    """
    nodes = list(node_names(os.environ))
    inside = {"inside": _inside(container, nodes[0])} if container else {}
    found, granted = describe_inside(accelerator), granted_gpus(os.environ)
    if not found["gpus"] and granted:  # Slurm's variable is missing where whole nodes were asked for
        found["gpus"] = granted.get(nodes[0], 0)
    return {
        "nodes": nodes,
        **found,
        **inside,
        "granted": granted,
        "deadline": end_of_allocation(os.environ),
        "age_s": _age_s(os.environ),
    }


def describe_inside(accelerator: str) -> dict[str, Any]:
    """Return what there is in this very environment: a node's own, or a container's."""
    return {
        "gpus": gpu_count(accelerator),
        "executable": sys.executable,
        "rank_client": str(Path(__file__).parents[1] / "runtime" / "process" / "forkserver" / "client.py"),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "versions": {name: _version_of(name) for name in _PACKAGES},
    }


def _inside(container: Sequence[str], node: str) -> dict[str, Any]:
    """Return what `describe_inside` says in a container, or ``error``: why it says nothing."""
    words = [word.replace("{node}", node) for word in container]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONTAINER_TIMEOUT_S,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return {"error": f"{words[0]} said nothing for {_CONTAINER_TIMEOUT_S} s"}
    except OSError as error:
        return {"error": f"{words[0]} cannot be started: {error.strerror}"}
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode == 0 and answers:
        found: dict[str, Any] = json.loads(answers[-1].removeprefix(_ANSWER))
        return found
    said = " ".join(done.stderr.split())[-_MOST_WORDS:] or "nothing on stderr"
    return {"error": f"exit {done.returncode}: {said}"}


def end_of_allocation(environment: Mapping[str, str]) -> float | None:
    """Return when the allocation ends [Unix time, s]: by Slurm's variable, or by asking Slurm or PBS."""
    if end := environment.get("SLURM_JOB_END_TIME"):
        return float(end)
    if job := environment.get("SLURM_JOB_ID"):
        return slurm.end_time(job)
    if job := environment.get("PBS_JOBID"):
        return pbs.end_time(job)
    return None


def granted_gpus(environment: Mapping[str, str]) -> dict[str, int] | None:
    """Return the GPUs of each node that the batch system gave to this allocation, or None."""
    if job := environment.get("SLURM_JOB_ID"):
        return slurm.granted_gpus(job)
    if job := environment.get("PBS_JOBID"):
        return pbs.granted_gpus(job)
    return None


def is_in_allocation(environment: Mapping[str, str]) -> bool:
    """Return whether a batch system has named the nodes of an allocation that this process is in."""
    return any(environment.get(name) for name in _NODES)


def node_names(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the allocation's nodes, each once: Slurm's, PBS's, LSF's, Grid Engine's, or this machine."""
    if nodes := environment.get("SLURM_JOB_NODELIST"):
        command = ("scontrol", "show", "hostnames", nodes)
        listing = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=_COMMAND_TIMEOUT_S,
            encoding="utf-8",
            errors="replace",
        )
        return _each_once(listing.stdout)
    for variable in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE"):
        if path := environment.get(variable):
            return _each_once(Path(path).read_text(encoding="utf-8"))
    if path := environment.get("PE_HOSTFILE"):  # host, slots, queue and processors in a line
        return _each_once(
            "\n".join(line.split()[0] for line in Path(path).read_text(encoding="utf-8").splitlines() if line)
        )
    return (platform.node() or "localhost",)


def gpu_count(accelerator: str) -> int:
    """Return the slots of this node: the GPUs that this process may use, or cores where slots are cores.

    Asks the driver's tools and device files, never torch: that would take seconds and might leave a
    context on a GPU. Devices that a mask such as CUDA_VISIBLE_DEVICES hides do not count.
    """
    if accelerator not in DEVICE_MASKS:
        return _core_count()
    installed = _installed(accelerator)
    there = installed or _granted_by_slurm()
    visible = visible_devices(accelerator, os.environ)
    if visible is None or not there:
        return there
    return sum(not (installed and name.isdecimal() and int(name) >= installed) for name in visible)


def _age_s(environment: Mapping[str, str]) -> float:
    began = environment.get(BEGAN_VARIABLE)
    return max(0.0, time.time() - float(began)) if began else 0.0


def _each_once(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split()))


def _installed(accelerator: str) -> int:
    if accelerator == "cuda":
        return _listed("nvidia-smi", "-L") or len(_devices("nvidia[0-9]*"))
    if accelerator == "rocm" and _KFD.is_dir():
        return kfd_gpu_count(_KFD)
    return len(_devices("dri/renderD*"))


def kfd_gpu_count(nodes: Path) -> int:
    """Return the GPUs that ROCm sees, in a folder of the kernel's topology.

    A node is a CPU, or a GPU, or a partition of one, which has its own number for ROCm. Other cards of the
    machine, such as its graphics, have a file in ``/dev/dri``, but no node. The kernel lets nobody read the
    properties of a GPU that the batch system keeps from him.

    Source: drivers/gpu/drm/amd/amdkfd/kfd_topology.c; ``simd_count`` in node_show.
    """
    return sum(_simd_count(properties) > 0 for properties in nodes.glob("*/properties"))


def _simd_count(properties: Path) -> int:
    try:
        facts = dict(line.split(maxsplit=1) for line in properties.read_text(encoding="ascii").splitlines())
        return int(facts.get("simd_count", "0"))
    except (OSError, ValueError):
        return 0


def _core_count() -> int:
    """Return the cores that this process may use, which taskset or a batch system may have bound."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _devices(pattern: str) -> list[Path]:
    return sorted(Path("/dev").glob(pattern))


def _listed(*command: str) -> int:
    if shutil.which(command[0]) is None:
        return 0
    listing = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMMAND_TIMEOUT_S,
        encoding="utf-8",
        errors="replace",
    )
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def _granted_by_slurm() -> int:
    granted = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(granted) if granted.isdigit() else 0


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    for _mask in DEVICE_MASKS.values():
        if not os.environ.get(_mask):  # enroot sets every variable that it is to pass on
            os.environ.pop(_mask, None)
    sys.stdout.write(f"{_ANSWER}{json.dumps(describe_inside(sys.argv[1]))}\n")
