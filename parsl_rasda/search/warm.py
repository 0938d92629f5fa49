"""A searcher that begins with what another search has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.search.base import Multiobjective, Searcher
from parsl_rasda.search.designs import value_at
from parsl_rasda.search.space import Constant, Parameter, SearchSpace, contains, own_form
from parsl_rasda.types import JSON, TrialId

_MIDDLE = 0.5


class WarmStarted:
    """Proposes known good configurations first, then whatever the searcher behind it proposes.

    What a known configuration does not say, or says out of range, is set to the parameter's prior, else to
    the middle of its range. A configuration that was restored counts as tried, others do not use one up.
    """

    def __init__(self, searcher: Searcher, space: SearchSpace, configs: Sequence[Mapping[str, JSON]]) -> None:
        """Put configurations in front of a searcher.

        Raises:
            InvalidSettingError: If one of them shares no parameter with the space.
        """
        for config in configs:
            if not set(config) & set(space.parameters):
                allowed = f"a search with one of the parameters {', '.join(space.parameters)}"
                raise InvalidSettingError("searcher.warm_start", sorted(config), allowed)
        self._searcher, self._space = searcher, space
        self._given: dict[TrialId, Mapping[str, JSON]] = {}
        self._untried = [self._completed(config) for config in configs]

    def propose(self, trial: TrialId) -> Mapping[str, JSON] | None:
        """Return the next configuration."""
        if trial in self._given:
            return self._given[trial]
        if not self._untried:
            return self._searcher.propose(trial)
        config = self._untried[0]
        self.restore(trial, config)
        return config

    def _completed(self, known: Mapping[str, JSON]) -> dict[str, JSON]:
        def choose(name: str, parameter: Parameter) -> JSON:
            is_known = name in known and contains(parameter, known[name])
            if is_known:
                return own_form(parameter, known[name])
            prior = None if isinstance(parameter, Constant) else parameter.prior
            return value_at(parameter, _MIDDLE) if prior is None else prior

        return self._space.configure(choose)

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Learn of a configuration proposed before a restart."""
        if trial not in self._given and config in self._untried:
            self._untried.remove(dict(config))
            self._given[trial] = config
        self._searcher.restore(trial, config)

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        """Let the searcher learn."""
        self._searcher.observe(trial, epoch, metric)

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        """Let the searcher learn."""
        self._searcher.conclude(trial, metric)

    def conclude_all(self, trial: TrialId, values: Sequence[float], violations: Sequence[float]) -> None:
        """Let the searcher learn: of the first metric, if it knows no more."""
        if isinstance(self._searcher, Multiobjective):
            self._searcher.conclude_all(trial, values, violations)
        else:
            self._searcher.conclude(trial, values[0])
