"""How a step's gradients change the weights: learning rate, clipping, and the optimizers' own steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.learning_rate import OwnedRates, Scaling, rate_factor, scaling_rule
from parsl_rasda.runtime.engine.pairs import Pair
from parsl_rasda.runtime.engine.suitability import refuse_kept_gradients
from parsl_rasda.types import ScheduleEntry


@dataclass(frozen=True, slots=True)
class Update:
    """How the optimizers update: the options of `Trial.prepare`.

    Attributes:
        rate: The learning rate that is scaled and warmed up; by name if the models have names.
        scaling: How it follows the batches of a step; None for ``training.lr_scaling``.
        schedule: Another factor: a function of the position [epochs].
        clip_norm: Largest norm of a step's gradient, of each model, or None.
    """

    rate: float | Mapping[str, float]
    scaling: Scaling | None = None
    schedule: Callable[[float], float] | None = None
    clip_norm: float | None = None


class Updater:
    """All optimizers of a trial.

    Attributes:
        optimizers: In the order in which they were made.
        scaler: Keeps small gradients of fp16 from vanishing, or None.
    """

    def __init__(
        self, pairs: Sequence[Pair], update: Update, training: Training, scaler: torch.amp.GradScaler | None
    ) -> None:
        self._pairs, self._how, self._training, self.scaler = pairs, update, training, scaler
        self.optimizers = [optimizer for pair in pairs for optimizer in pair.optimizers]
        self._unchecked = list(self.optimizers)  # those that have no state yet
        rule = training.lr_scaling
        self._rates = [
            (OwnedRates(o), update.scaling or scaling_rule(rule, type(o))) for o in self.optimizers
        ]

    def set_rates(self, position: float, schedule: Sequence[ScheduleEntry]) -> None:
        """Set the learning rates of a step, at its position in training [epochs]."""
        own = self._how.schedule(position) if self._how.schedule else 1.0
        initial, rescale = self._training.warmup_initial, self._training.warmup_rescale
        for rates, scaling in self._rates:
            rates.scale(own * rate_factor(position, schedule, scaling, initial=initial, rescale=rescale))

    def check_rates(self) -> None:
        """Refuse what somebody else has done to the rates (`OwnedRates.check`)."""
        for rates, _ in self._rates:
            rates.check()

    def step(self) -> None:
        """Update what has gradients; a model without a loss in this step has none.

        Raises:
            TrainingError: If an optimizer keeps gradients instead of copies.
        """
        busy = [optimizer for optimizer in self.optimizers if _has_gradients(optimizer)]
        given = [(optimizer, _gradients(optimizer)) for optimizer in self._unchecked]
        if self.scaler:
            for optimizer in busy:
                self.scaler.unscale_(optimizer)
        if self._how.clip_norm is not None:
            for pair in self._pairs:
                nn.utils.clip_grad_norm_(pair.parameters, self._how.clip_norm)
        for optimizer in busy:
            if self.scaler:
                self.scaler.step(optimizer)
            else:
                optimizer.step()
        if self.scaler and busy:
            self.scaler.update()
        for optimizer, grads in given:
            if grads and optimizer.state:
                refuse_kept_gradients(optimizer, grads)
                self._unchecked.remove(optimizer)


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for options in optimizer.param_groups for p in options["params"])


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    given = (p.grad for options in optimizer.param_groups for p in options["params"])
    return [grad for grad in given if grad is not None]
