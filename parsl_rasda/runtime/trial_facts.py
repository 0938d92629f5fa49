"""What a training function may ask of its trial, before and while it trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.protocol import EpochReport
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.types import JSON, Phase

if TYPE_CHECKING:
    import torch


class TrialFacts:
    """One trial, as its job was ordered and as it stands.

    Attributes:
        config: The hyperparameters.
        inputs: Outputs of the earlier stages that the study needs, by name.
        seed: Seed of the trial. It seeds the global generators before the function starts.
        world_size: Number of ranks of the job.
        rank: Index of this rank.
        is_main: Whether this is the rank that should print and plot.
    """

    def __init__(self, attempt: Attempt) -> None:
        spec = attempt.spec
        self.config: Mapping[str, Any] = spec.config
        self.inputs: Mapping[str, JSON] = spec.inputs
        self.seed, self.world_size, self.rank = spec.seed, spec.world_size, attempt.context.rank
        self.is_main = attempt.is_main
        self._attempt, self._spec = attempt, spec

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._attempt.epoch

    @property
    def max_epochs(self) -> int:
        """Epochs of a trial that is never stopped: what a schedule of the rate is made for."""
        return self._spec.max_epochs

    @property
    def replicas(self) -> int:
        """Logical data-parallel workers of the current stretch, which share each step."""
        return self._attempt.replicas

    @property
    def global_batch_size(self) -> int:
        """Samples of a step, at most: those of all replicas."""
        return self._attempt.replica_share * self.replicas

    @property
    def metric(self) -> str:
        """The metric that the study judges by; empty in a `local_trial`."""
        return self._spec.metric

    @property
    def history(self) -> tuple[EpochReport, ...]:
        """The reports of this job so far, on rank 0."""
        return tuple(self._attempt.history)

    @cached_property
    def directory(self) -> Path:
        """A scratch directory of this attempt, shared by its ranks."""
        scratch = self._attempt.directory / "scratch"
        scratch.mkdir(exist_ok=True)
        return scratch

    @cached_property
    def device(self) -> torch.device:
        """The device of this rank. The first use imports torch and sets the device up."""
        from parsl_rasda.runtime.engine.rank_device import own_device

        return own_device(self._spec, self._attempt.context.device_index)

    @cached_property
    def _group(self) -> Group:
        context, directory = self._attempt.context, self._attempt.directory
        if self._spec.accelerator == "none" or context.size == 1:
            return Group(0, 1, self.device if "torch" in sys.modules else None, directory, one_node=True)
        group = Group(
            context.rank,
            context.size,
            self.device,
            directory,
            one_node=context.one_node,
            rendezvous_s=self._spec.rendezvous_s,
        )
        from parsl_rasda.runtime.engine.rank_device import device_name

        said = group.gather_strings(f"{context.slot} {device_name(self.device)}")
        slots, _, names = zip(*(text.partition(" ") for text in said), strict=True) if said else ((), (), ())
        self._attempt.slots, self._attempt.devices = slots, tuple(dict.fromkeys(filter(None, names)))
        self._attempt.enter(Phase.FIRST_STEP)
        return group
