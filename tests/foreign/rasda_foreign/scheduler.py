import math

from pydantic import BaseModel, Field

from parsl_rasda.plugins import Plugin
from parsl_rasda.scheduling import RungScheduler, SchedulerSettings


class Options(BaseModel):
    tolerance: float = Field(0.1, ge=0, description="How far a trial may be from the best of its rung.")


class TolerantScheduler(RungScheduler):
    def __init__(self, options: Options, settings: SchedulerSettings) -> None:
        super().__init__(settings.rungs, settings.mode, settings.metric)
        self._tolerance, self._best = options.tolerance, [math.inf] * len(self.milestones)

    def _judge(self, contender, reached, metric):
        contender.rung = reached
        if not math.isfinite(metric):
            return self._stop(contender, f"{metric} is not finite")
        if reached == self.rungs.last:
            return self._complete(contender)
        best = self._best[reached] = min(self._best[reached], contender.cost)  # costs: lower is better
        decide = self._advance if contender.cost <= best + self._tolerance else self._stop
        return decide(contender, f"the best so far is {best:g}")


TOLERANT = Plugin(TolerantScheduler, Options)
