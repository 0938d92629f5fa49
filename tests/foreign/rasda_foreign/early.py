from pydantic import BaseModel, Field

from parsl_rasda.plugins import Plugin


class Options(BaseModel):
    steps: int = Field(2, ge=1, strict=True, description="Last epochs whose fall is believed to go on.")


class SteadyFall:
    def __init__(self, options: Options) -> None:
        self._steps = options.steps

    def best_case(self, curve, until):
        epochs = sorted(curve)[-1 - self._steps :]
        if len(epochs) <= self._steps:
            return float("-inf")
        first, last = epochs[0], epochs[-1]
        fall = max(0.0, (curve[first] - curve[last]) / (last - first))  # each is finite: lower is better
        return curve[last] - fall * (until - last)


STEADY = Plugin(SteadyFall, Options)
