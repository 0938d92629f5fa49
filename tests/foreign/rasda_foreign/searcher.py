import random

from pydantic import BaseModel, Field

from parsl_rasda.plugins import Plugin
from parsl_rasda.search import SearcherSettings
from parsl_rasda.search.designs import Design, value_at


class Options(BaseModel):
    step: float = Field(0.618, gt=0, lt=1, description="From one trial to the next, as a share of the range.")


class LatticeSearcher(Design):
    def __init__(self, options: Options, settings: SearcherSettings) -> None:
        super().__init__()
        self._step, self._space, self._seed = options.step, settings.space, settings.seed

    def _next(self):
        return self._space.configure(lambda name, parameter: value_at(parameter, self._share(name)))

    def _share(self, name):
        return (random.Random(f"{self._seed} {name}").random() + self.proposed * self._step) % 1


LATTICE = Plugin(LatticeSearcher, Options)
