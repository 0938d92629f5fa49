from pydantic import BaseModel, Field

from parsl_rasda.placement.growth import ElasticGrowth
from parsl_rasda.plugins import Plugin


class Options(BaseModel):
    after: int = Field(1, ge=0, strict=True, description="Epochs that a trial keeps its world size.")


class LateGrowth(ElasticGrowth):
    def __init__(self, options: Options) -> None:
        self._after = options.after

    def decide(self, cluster, now, here=None):
        is_early = here is not None and here.ahead.epoch < self._after
        return super().decide(cluster, now, None if is_early else here)


LATE = Plugin(LateGrowth, Options)
