"""How many replicas share a step, and how large the step is, on as many GPUs as the rule gives.

The rule of RASDA gives a trial more GPUs at each rung. `doubling` lets the batch grow with them, as the
paper does, but not so far that an epoch is left with too few steps. `constant` keeps the batch, and cuts it
from the start into as many parts as the trial will ever have GPUs, so that they change nothing but its speed.
`measured` cuts it likewise, and lets it grow as `doubling` does, but not beyond the noise scale of the
trial's own gradients, where a larger batch would waste samples.

Source of `measured`: McCandlish et al. 2018 (arXiv 1812.06162), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parsl_rasda.types import JSON


class Split(NamedTuple):
    """The parallelism of a stretch; see `types.Stretch`."""

    replicas: int
    workers: int
    batches: int


@dataclass(frozen=True, slots=True)
class Batching:
    """What `scheduler.batch` and `scheduler.min_steps_per_epoch` ask for.

    Attributes:
        constant_replicas: Replicas at every rung under `constant` and `measured`; None under `doubling`.
        min_steps: Steps that an epoch keeps while the batch grows; 0 for no limit.
        batch_size: Samples of a batch, or the parameter of a configuration that says so.
        is_measured: The batch grows as far as its noise allows.
    """

    constant_replicas: int | None = None
    min_steps: int = 0
    batch_size: int | str = ""
    is_measured: bool = False

    def split(
        self,
        ladder: Sequence[int],
        config: Mapping[str, JSON],
        samples: int | None,
        *,
        batches: int | None = None,
        noise_scale: float | None = None,
    ) -> Split:
        """Return the parallelism at a rung.

        Args:
            ladder: GPUs that the rule gives at each rung up to this one.
            config: Configuration of the trial.
            samples: Training samples of an epoch, or None if nobody knows: then the batch grows freely.
            batches: Those of a step so far, of which `measured` takes away none; None for a new trial.
            noise_scale: Samples of a step that its gradients allow, or None if nobody knows: then `measured`
                does not let the batch grow.
        """
        workers = ladder[-1]
        if self.constant_replicas is not None:
            size = self.batch_size_of(config) if self.is_measured else None
            batches = (batches or ladder[0]) if self.is_measured else 1
            if size is not None and noise_scale is not None:
                enough = (b for b in ladder if self._leaves_enough(b * size, samples))
                batches = max([batches, *(b for b in enough if b * size <= noise_scale)])
            return Split(self.constant_replicas, math.gcd(workers, self.constant_replicas), batches)
        if samples is None or not self.min_steps or (size := self.batch_size_of(config)) is None:
            return Split(workers, workers, workers)
        batches = next(self._batches_that_leave_enough(ladder, size, samples), ladder[0])
        shares = (w for w in reversed(ladder) if w >= batches and size * batches % w == 0)
        replicas = next(shares, batches)
        return Split(replicas, replicas, batches)

    def _batches_that_leave_enough(self, ladder: Sequence[int], size: int, samples: int) -> Iterator[int]:
        return (b for b in reversed(ladder) if self._leaves_enough(b * size, samples))

    def _leaves_enough(self, global_batch_size: int, samples: int | None) -> bool:
        return samples is None or steps_per_epoch(samples, global_batch_size) >= self.min_steps

    def batch_size_of(self, config: Mapping[str, JSON]) -> int | None:
        """Return the samples of a batch of a trial, or None if its configuration does not say."""
        size = config.get(self.batch_size) if isinstance(self.batch_size, str) else self.batch_size
        return int(size) if isinstance(size, int | float) and size >= 1 else None


def steps_per_epoch(samples: int, global_batch_size: int) -> int:
    """Return the steps of an epoch, as `runtime.engine.replicas.EpochPlan` cuts it."""
    return -(-samples // global_batch_size)
