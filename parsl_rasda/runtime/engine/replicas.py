"""Which sample goes where: pure functions of (seed, epoch, step, replica), never of rank or world size.

A *step* is one update of the weights. The replicas share its samples; rank ``k`` of ``W`` carries the
replicas ``k*R/W .. (k+1)*R/W``. So a replica computes the same on any rank. Each replica walks through its
own contiguous part of the epoch's order: a rank reads few blocks of a data set on disk, and no other rank
reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from parsl_rasda.errors import InvalidSettingError, TrainingError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One replica's part of one step.

    Attributes:
        begin: Position of its first sample in the epoch's order.
        size: Number of samples; may be 0 if there are fewer samples than replicas.
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

    No step is larger than ``replicas * share``, and any two differ by at most one sample: a short last step
    would be noisier than the others and break batch statistics.

    Attributes:
        share: Samples of one replica in a step, at most.
    """

    samples: int
    replicas: int
    share: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise TrainingError("The data set is empty.", "Give trial.batches at least one sample.")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return -(-self.samples // (self.replicas * self.share))

    def size(self, step: int) -> int:
        """Return the samples of a step."""
        return _part(self.samples, self.steps, step)[1]

    def step(self, step: int) -> tuple[MicroBatch, ...]:
        """Return the micro-batch of every replica, in replica order."""
        total = self.size(step)
        sizes = (_part(total, self.replicas, replica)[1] for replica in range(self.replicas))
        return tuple(
            MicroBatch(step, replica, self._begin(replica, step), size, size / total)
            for replica, size in enumerate(sizes)
        )

    def own(self, step: int, mine: range) -> list[MicroBatch]:
        """Return the micro-batches of some replicas, without those that have no samples."""
        return [m for m in self.step(step)[mine.start : mine.stop] if m.size]

    def _begin(self, replica: int, step: int) -> int:
        """Return how many samples the replicas before this one take, and this one before the step."""
        total, larger = divmod(self.samples, self.steps)  # the first `larger` steps have one sample more
        begin = 0
        for size, steps, done in (
            (total + 1, larger, min(step, larger)),
            (total, self.steps - larger, max(step - larger, 0)),
        ):
            offset, own = _part(size, self.replicas, replica)
            begin += steps * offset + done * own
        return begin


def carried(rank: int, world_size: int, replicas: int) -> range:
    """Return the replicas that a rank carries. They are contiguous, so they form a subtree.

    Raises:
        TrainingError: If the world size does not divide the replicas.
    """
    if replicas % world_size:
        raise TrainingError(
            f"{world_size} ranks cannot share {replicas} replicas.",
            "The world size must divide the replicas.",
        )
    each = replicas // world_size
    return range(rank * each, (rank + 1) * each)


def share_of_replica(batch_size: int, batches: int, replicas: int) -> int:
    """Return the samples of a step, at most, that one replica takes.

    Raises:
        InvalidSettingError: If the replicas cannot share the batches evenly.
    """
    share, rest = divmod(batch_size * batches, replicas)
    if rest:
        found = f"{batches} x {batch_size} samples for {replicas} replicas"
        raise InvalidSettingError("training.batch_size", found, f"a multiple of {replicas}")
    return share


def validation_batches(samples: int, replicas: int, mine: Sequence[int], share: int) -> list[range]:
    """Return the validation batches of the replicas ``mine``, as positions in a data set.

    The batches depend on the replicas only, so a sample is always evaluated together with the same others.
    All replicas have the same number of batches, because the ranks of a sharded model run them together; so
    a batch may have 2 samples where the share is 1. If there are fewer samples than replicas, each rank
    takes all of them, which leaves the mean unchanged.
    """
    parts = [_part(samples, replicas, r) for r in mine]
    if samples < replicas:
        parts, replicas = [(0, samples)], 1
    count = min(-(-samples // (replicas * share)), samples // replicas)
    batches: list[range] = []
    for begin, size in parts:
        cuts = (_part(size, count, i) for i in range(count))
        batches.extend(range(begin + offset, begin + offset + length) for offset, length in cuts)
    return batches


def is_power_of_two(number: int) -> bool:
    """Return whether a number is a power of two: a full binary tree may have that many leaves."""
    return number > 0 and number & (number - 1) == 0


def seed_of(*parts: int | str) -> int:
    """Return 63 well mixed bits. torch's CPU generator reads the low 32 only, so fields cannot be packed."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _part(total: int, parts: int, index: int) -> tuple[int, int]:
    """Return offset and size of one of the equal parts; the first ones may have one more."""
    size, rest = divmod(total, parts)
    return index * size + min(index, rest), size + (index < rest)
