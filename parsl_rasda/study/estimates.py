"""What is assumed of a training until it has been measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from parsl_rasda.study.parameters import LARGEST_INT
from parsl_rasda.study.spec import Number, Seconds, Spec
from parsl_rasda.types import GradientNoise

Samples = Annotated[int, Field(strict=True, ge=1, le=LARGEST_INT)]  # a data set may have any number


class EstimateSpec(Spec):
    """What `plan` and the growth policy assume until they have measured it."""

    epoch_s: Annotated[Seconds, Field(gt=0)] = Field(60.0, description="An epoch on `num_workers` GPUs [s].")
    restart_s: Seconds = Field(10.0, description="A restart at another width [s].")
    efficiency: Annotated[Number, Field(gt=0.5, le=1)] = Field(
        0.9, description="Parallel efficiency of a doubling; at 0.5 more GPUs would gain nothing."
    )
    spread: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Relative spread of epoch times between trials."
    )
    samples: Samples | None = Field(
        None,
        description="Training samples of an epoch, for `min_steps_per_epoch`; a run counts them itself.",
        examples=[50_000],
    )
    noise_scale: Annotated[Number, Field(gt=0)] | None = Field(
        None,
        description="Samples of a step in which gradient and noise are equal, for `batch: measured`; a run "
        "measures it itself.",
        examples=[400],
    )

    @property
    def noise(self) -> GradientNoise | None:
        """The noise that gradients are assumed to have, or None for no assumption."""
        return None if self.noise_scale is None else GradientNoise(1.0, self.noise_scale)
