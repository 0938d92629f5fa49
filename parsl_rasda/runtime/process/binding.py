"""Which cores a rank keeps to: the ones next to its GPU.

No launcher is asked to bind: each trial's would give its ranks the first cores of the node, where those
of other trials are already. The ledger's slot says which GPU a rank has, the site file which cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from parsl_rasda.types import CORES_VARIABLE


def bind(gpu: int) -> None:
    """Keep this process, and what it starts, to the cores of a GPU; without any for it, do nothing."""
    cores = own_cores(gpu, os.environ, os.sched_getaffinity(0))
    if cores is not None:
        os.sched_setaffinity(0, cores)


def own_cores(gpu: int, environ: Mapping[str, str], allowed: AbstractSet[int]) -> frozenset[int] | None:
    """Return the cores of a GPU among those that may be used, or None where there is none to keep to.

    Args:
        gpu: The number of its slot.
        environ: Holds `CORES_VARIABLE`: the cores of each GPU of a node, such as ``0-7,16 8-15``.
        allowed: The cores that the batch system lets this process use.
    """
    of_each = environ.get(CORES_VARIABLE, "").split()
    if gpu >= len(of_each):
        return None
    return frozenset(allowed).intersection(_numbers(of_each[gpu])) or None


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
