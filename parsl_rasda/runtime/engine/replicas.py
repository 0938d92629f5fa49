"""Which sample goes where, as pure functions of (seed, epoch, step, replica): never of rank or width.

A *step* is one update of the weights. Its samples are shared by the replicas; rank ``k`` of ``W``
carries replicas ``k*R/W .. (k+1)*R/W``. What a replica computes is therefore the same on any rank.
A replica walks through a part of the epoch's order that is its own and contiguous, so that a rank reads
few blocks of a data set on disk, and no other rank reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from parsl_rasda.errors import TrainingError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One replica's part of one step.

    Attributes:
        begin: Position of its first sample in the epoch's order.
        size: Number of samples; 0 if there are fewer samples than replicas.
        weight: Its share of the step's samples; the weights of a step add up to 1.
    """

    step: int
    replica: int
    begin: int
    size: int
    weight: float


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """How an epoch's samples are cut into steps and micro-batches.

    No step is larger than ``replicas * batch_size`` and any two differ by at most one sample: a
    short last step would be noisier than the rest and break batch statistics of single samples.
    """

    samples: int
    replicas: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise TrainingError("The data set is empty.", "Give trial.batches at least one sample.")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return -(-self.samples // (self.replicas * self.batch_size))

    def step(self, step: int) -> tuple[MicroBatch, ...]:
        """Return the micro-batch of every replica, in replica order."""
        total = _part(self.samples, self.steps, step)[1]
        sizes = (_part(total, self.replicas, replica)[1] for replica in range(self.replicas))
        return tuple(
            MicroBatch(step, replica, self._begin(replica, step), size, size / total)
            for replica, size in enumerate(sizes)
        )

    def _begin(self, replica: int, step: int) -> int:
        """Return what the replicas before this one take in the epoch, and this one before the step."""
        total, larger = divmod(self.samples, self.steps)  # that many steps have one sample more, the first
        begin = 0
        for size, steps, done in (
            (total + 1, larger, min(step, larger)),
            (total, self.steps - larger, max(step - larger, 0)),
        ):
            offset, own = _part(size, self.replicas, replica)
            begin += steps * offset + done * own
        return begin


def carried(rank: int, world_size: int, replicas: int) -> range:
    """Return the replicas that a rank carries: contiguous, so that they form a subtree.

    Raises:
        TrainingError: If the world size does not divide the replicas.
    """
    if replicas % world_size:
        raise TrainingError(
            f"{replicas} replicas cannot be shared by {world_size} ranks.",
            "The world size must divide the replicas.",
        )
    each = replicas // world_size
    return range(rank * each, (rank + 1) * each)


def validation_batches(samples: int, replicas: int, mine: Sequence[int], batch_size: int) -> list[range]:
    """Return the batches of the replicas ``mine``, as positions in a data set.

    The cut depends on the replicas only, so a sample is always evaluated among the same others. Every
    replica has as many batches, for ranks of a sharded model run them together: where `batch_size` is 1,
    one may hold 2. If there are fewer samples than replicas, each rank takes them all, which leaves the
    mean as it is.
    """
    parts = [_part(samples, replicas, r) for r in mine]
    if samples < replicas:
        parts, replicas = [(0, samples)], 1
    count = min(-(-samples // (replicas * batch_size)), samples // replicas)
    batches: list[range] = []
    for begin, size in parts:
        cuts = (_part(size, count, i) for i in range(count))
        batches.extend(range(begin + offset, begin + offset + length) for offset, length in cuts)
    return batches


def is_power_of_two(number: int) -> bool:
    """Return whether a fixed binary tree has that many leaves at every level."""
    return number > 0 and number & (number - 1) == 0


def seed_of(*parts: int | str) -> int:
    """Return 63 well mixed bits: torch's CPU generator looks at the low 32 only, so never pack fields."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _part(total: int, parts: int, index: int) -> tuple[int, int]:
    """Return offset and size of one of the even parts, larger ones first."""
    size, rest = divmod(total, parts)
    return index * size + min(index, rest), size + (index < rest)
