"""Names of plug-ins: what an entry point of an installed package adds to what is built in.

Only names are read here; the layer that uses a plug-in imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated

from pydantic import AfterValidator

from parsl_rasda.study.spec import complaint, listing, suggestion

SCHEDULERS = "parsl_rasda.schedulers"
SEARCHERS = "parsl_rasda.searchers"
LAUNCHERS = "parsl_rasda.launchers"
GROWTH_POLICIES = "parsl_rasda.growth"
BACKENDS = "parsl_rasda.backends"


@dataclass(frozen=True, slots=True)
class _Known:
    group: str
    built_in: tuple[str, ...]

    def __call__(self, kind: str) -> str:
        if kind in self.built_in:
            return kind
        names = (*self.built_in, *sorted(entry_points(group=self.group).names))
        if kind not in names:
            raise complaint(kind, f"{listing(names)}{suggestion(kind, names)}")
        return kind


SchedulerKind = Annotated[str, AfterValidator(_Known(SCHEDULERS, ("rasda", "asha")))]
SearcherKind = Annotated[
    str, AfterValidator(_Known(SEARCHERS, ("random", "grid", "sobol", "tpe", "gp", "cmaes", "list")))
]
LauncherKind = Annotated[str, AfterValidator(_Known(LAUNCHERS, ("hydra", "openmpi", "srun", "process")))]
GrowthKind = Annotated[str, AfterValidator(_Known(GROWTH_POLICIES, ("elastic", "strict", "none")))]
BackendKind = Annotated[str, AfterValidator(_Known(BACKENDS, ()))]
