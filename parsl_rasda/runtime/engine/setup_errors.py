"""Why the ranks of a job cannot form a group, whoever tries: the site's fault, or a setting's.

That is told from lost contact, for which another rank may be to blame.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from parsl_rasda.errors import RasdaError

if TYPE_CHECKING:
    from torch import device

_NAMES = {"nccl": "NCCL", "xccl": "XCCL", "gloo": "gloo"}
# torch, csrc/distributed/c10d/NCCLUtils.hpp: what NCCL says follows "Last error:", then C++ frames.
_LAST_ERROR = re.compile(r"Last error:\s*(.*?)(?=\nException raised|\nC\+\+ CapturedTraceback|\Z)", re.DOTALL)
_MEMORY = re.compile(r"out of memory|Failed to (CUDA|HIP) (host )?(m|c)alloc", re.IGNORECASE)
_CONTACT = re.compile(
    r"timed? ?out|timeout|Connection (closed|reset|refused)|closed by (remote )?peer|socketStartConnect"
    r"|wait_for|remote process exited|ncclRemoteError|No route|unreachable",
    re.IGNORECASE,
)
# The same in words: of torch, and of NCCL and RCCL.
_OWN = re.compile(r"(CUDA|HIP) error\b|(Cuda|HIP) failure|unhandled (cuda|hip) error")
OWN_ERRORS = {"OutOfMemoryError", "AcceleratorError"}  # of this rank's kernels, which torch may notice late
_CONTEXT_GIB = 1.0  # of the GPU's memory, that this process's own driver and libraries need
_GIB = 2**30


class GroupSetupError(RasdaError):
    """The group of a job's ranks cannot be made, whoever tries."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what, self.advice = what, advice

    def __str__(self) -> str:
        return f"The ranks cannot form a group: {self.what} {self.advice}"


def check_backend(backend: str, on: device, is_available: Callable[[str], bool], version: str) -> None:
    """Refuse a backend that this torch does not have.

    Args:
        backend: Its name in torch.
        on: The device of this rank.
        is_available: Whether torch has it.
        version: Of torch.

    Raises:
        GroupSetupError: In words.
    """
    if not is_available(backend):
        name = _NAMES.get(backend, backend)
        raise GroupSetupError(
            f"torch {version} was built without {name}, which adds the gradients of {on.type} devices.",
            f"Install a torch with {name} on the site, for example from the site's own module.",
        )


def check_interfaces(backend: str, environ: Mapping[str, str], present: Collection[str]) -> None:
    """Refuse the name of a network interface that this node does not have.

    Args:
        backend: What will look for it. gloo takes names, NCCL also beginnings of names, with ``=`` for whole
            names and ``^`` for those not to use.
        environ: The environment of this rank.
        present: The node's interfaces.

    Raises:
        GroupSetupError: In words.

    Source:
        https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html, NCCL_SOCKET_IFNAME.
    """
    variable = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}.get(backend, "")
    value = environ.get(variable, "")
    if not value or value.startswith("^"):
        return
    is_exact = backend == "gloo" or value.startswith("=")
    wanted = [name.partition(":")[0] for name in value.removeprefix("=").split(",") if name]
    found = [any(name == p if is_exact else p.startswith(name) for p in present) for name in wanted]
    if not (all(found) if backend == "gloo" else any(found)):
        raise GroupSetupError(
            f"{variable} is {value!r}, but this node has {', '.join(sorted(present))}.",
            f"Correct `environment: {{{variable}: ...}}` in the site file, or what the nodes' shell sets.",
        )


@contextmanager
def setting_up(backend: str, on: device, memory: Callable[[], tuple[int, int, int]]) -> Iterator[None]:
    """Turn what a backend raises while a group is made.

    Unless it is that another rank was not reached, or that this rank's own device has failed.

    Args:
        backend: Its name in torch.
        on: The device of this rank.
        memory: Returns how much memory of a GPU is free, how much it has, and how much of it torch holds here
            [bytes].
    """
    try:
        yield
    except RuntimeError as error:
        said = words_of_backend(error)
        if _MEMORY.search(said) and on.type != "cpu":
            raise _no_memory(backend, said, *memory()) from error
        if type(error).__name__ in OWN_ERRORS or _OWN.search(said):
            raise
        if _CONTACT.search(said) or type(error).__name__ in {"DistNetworkError", "DistStoreError"}:
            raise
        name = _NAMES.get(backend, backend)
        raise GroupSetupError(
            f"{name} says: {said}.",
            "Look at the site's network and driver; `environment: {NCCL_DEBUG: INFO}` of the site says more.",
        ) from error


def words_of_backend(error: BaseException) -> str:
    """Return what a backend says in one line: the first, and what NCCL adds as its last error."""
    text = str(error)
    first, last = text.partition("\n")[0].strip(), _LAST_ERROR.search(text)
    added = " / ".join(line.strip() for line in last[1].splitlines() if line.strip()) if last else ""
    return f"{first}; last error: {added}" if added else first


def _no_memory(backend: str, said: str, free: int, total: int, own: int) -> GroupSetupError:
    others = max(0.0, (total - free - own) / _GIB - _CONTEXT_GIB)
    held = f" Other processes have {others:.2f} GiB memory in use." if others >= _CONTEXT_GIB else ""
    return GroupSetupError(
        f"{_NAMES.get(backend, backend)} found no memory on the GPU (CUDA out of memory), of whose "
        f"{total / _GIB:.1f} GiB {free / _GIB:.2f} are free and {own / _GIB:.2f} this rank's own.{held}",
        f"Make the model or `batch_size` smaller, or free the GPU. {said}",
    )
