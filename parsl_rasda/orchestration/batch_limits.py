"""What `plan` and `validate` say of batches that will stop growing, if the samples of an epoch are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from parsl_rasda.orchestration.assembly import batching, build_machine
from parsl_rasda.scheduling.batching import steps_per_epoch
from parsl_rasda.study import TuneSpec
from parsl_rasda.study.batch_sizes import sizes_in


def limits_of_batches(tune: TuneSpec, samples: int | None) -> Iterator[str]:
    """Yield a sentence for each batch size whose growth `min_steps_per_epoch` will stop.

    Args:
        tune: What is declared.
        samples: Training samples of an epoch, or None if nobody knows: then nothing is said.
    """
    rule = batching(tune)
    if samples is None or (rule.constant_replicas is not None and not rule.is_measured):
        return
    scheduler = build_machine(tune).scheduler
    ladder = [scheduler.replicas(rung) for rung in range(len(scheduler.milestones))]
    for size in sizes_in(tune.training.batch_size, tune.search_space):
        found = replace(rule, batch_size=size).split(ladder, {}, samples, noise_scale=math.inf)
        if found.batches < ladder[-1]:
            steps = steps_per_epoch(samples, size * ladder[-1])
            grown = f"more than {found.workers} GPUs cannot share it evenly"
            if found.workers == ladder[-1]:
                grown = "GPUs still grow"
            most = f"{ladder[-1]} {'batches' if rule.is_measured else 'replicas'}"
            stays = "goes no further than" if rule.is_measured else "stays at"
            yield (
                f"at {most} an epoch of {samples} samples has "
                f"{steps} step{'' if steps == 1 else 's'} with batch_size {size}; "
                f"the batch {stays} {found.batches} x {size}: {grown}"
            )
