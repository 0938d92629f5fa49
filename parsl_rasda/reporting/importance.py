"""How much each hyperparameter matters: the share of the variation among good trials that it explains.

PED-ANOVA, on results after the same number of epochs: those of several rungs cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parsl_rasda.reporting.ped_anova import explained
from parsl_rasda.search.space import Constant, SearchSpace
from parsl_rasda.types import Mode

FEWEST = 8  # trials, below which a share is noise
_GOOD = 0.25  # of the trials; with a tenth, the default, a small search has one or two


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of the hyperparameters.

    Attributes:
        shares: By name, the largest first; they sum to 1.
        epochs: After which the metric was taken.
        trials: How many had it.
    """

    shares: Mapping[str, float]
    epochs: int
    trials: int


def importance_of(summary: Mapping[str, Any], space: SearchSpace) -> Importance | None:
    """Return how much each hyperparameter matters, or None if there are too few trials to tell.

    The results are those of the highest rung that half of all trials have come to. A parameter that only
    some trials have is judged among these.

    Args:
        summary: The JSON document of a search.
        space: What was searched.

    Source:
        Watanabe et al. 2023 (arXiv:2304.10255).
    """
    found = _results(summary)
    if found is None:
        return None
    epochs, all_results = found
    results = [(config, metric) for config, metric in all_results if space.accepts(config)]
    raw = {}
    for name, parameter in space.parameters.items():
        own = [(config, metric) for config, metric in results if name in config]
        values = {repr(config[name]) for config, _ in own}
        if len(own) >= FEWEST and len(values) > 1 and not isinstance(parameter, Constant):
            sign = 1 if summary["mode"] == Mode.MIN else -1
            losses = [sign * metric for _, metric in own]
            raw[name] = explained([config[name] for config, _ in own], losses, parameter, _GOOD)
    total = sum(raw.values())
    if not total > 0:
        return None
    ranked = sorted(raw.items(), key=lambda item: -item[1])
    return Importance({name: value / total for name, value in ranked}, epochs, len(results))


def _results(summary: Mapping[str, Any]) -> tuple[int, list[tuple[Mapping[str, Any], float]]] | None:
    """Return the rung whose results are compared, and those: configurations and metrics."""
    trials = summary["trial_list"]
    for rung in reversed(summary["rungs"]):
        epochs = rung["epochs"]
        found = [(t["config"], dict(t["history"]).get(epochs)) for t in trials]
        finite = [(config, m) for config, m in found if m is not None and math.isfinite(m)]
        if len(finite) >= max(FEWEST, len(trials) / 2):
            return epochs, finite
    return None
