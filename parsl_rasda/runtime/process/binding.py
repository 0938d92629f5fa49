"""The cores that a rank keeps to: those next to its GPU.

No launcher is asked to bind, because the launcher of each trial would give its ranks the first cores of the
node, where ranks of other trials are already. The slot tells a rank's GPU, the site file the GPU's cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from parsl_rasda.devices import CORES_VARIABLE


def bind(gpu: int) -> None:
    """Bind this process, and whatever it starts, to the cores of a GPU, if the site names them."""
    cores = own_cores(gpu, os.environ, os.sched_getaffinity(0))
    if cores is not None:
        os.sched_setaffinity(0, cores)


def own_cores(gpu: int, environ: Mapping[str, str], allowed: AbstractSet[int]) -> frozenset[int] | None:
    """Return those cores of a GPU that may be used, or None if there are none.

    Args:
        gpu: Its number on the node.
        environ: Has `CORES_VARIABLE`: the cores of each GPU of a node, such as ``0-7,16 8-15``.
        allowed: The cores that the batch system allows this process to use.
    """
    cores_of_gpus = environ.get(CORES_VARIABLE, "").split()
    if gpu >= len(cores_of_gpus):
        return None
    return frozenset(allowed).intersection(_numbers(cores_of_gpus[gpu])) or None


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
