"""Beliefs about good values, mixed with what a searcher proposes so that a wrong one costs little.

A part of the configurations is drawn near the priors, the rest is the searcher's. The part begins at a half,
follows what trials have shown (how often one of each kind is among the best third), and fades. Draws are pure
functions of (seed, how many were proposed before), so a restart and a replay decide the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import cast

from parsl_rasda.search.base import Multiobjective, Searcher
from parsl_rasda.search.designs import share_at, value_at
from parsl_rasda.search.space import CONFIDENCES, Choice, Constant, Parameter, SearchSpace
from parsl_rasda.types import JSON, Mode, TrialId

_DEVIATION = dict(zip(CONFIDENCES, (0.3, 0.15, 0.05), strict=True))  # of the range
_WEIGHT = dict(zip(CONFIDENCES, (0.3, 0.5, 0.8), strict=True))  # of the believed choice, beside a fair draw
_BEST = 3  # one in three is a good trial
_FADES = 20  # configurations after which priors count half: by then trials say more


class WithPriors:
    """Draws from the priors with a probability that results correct; else the searcher behind it proposes.

    That searcher learns of all trials. A parameter without a prior is drawn uniformly.

    Source:
        Mallik et al. 2023, PriorBand (arXiv:2306.12370), section 4: mix prior and random samples, weighted
        by how well each has done. Here the weights are the chances, by Laplace's rule of succession, that
        a configuration of either kind is among the best third so far.
    """

    def __init__(self, searcher: Searcher, space: SearchSpace, *, mode: Mode, seed: int) -> None:
        """Put the priors of a space in front of a searcher."""
        self._searcher, self._space, self._seed = searcher, space, seed
        self._sign = 1 if mode is Mode.MIN else -1
        self._configs: dict[TrialId, Mapping[str, JSON]] = {}
        self._from_prior: set[TrialId] = set()
        self._losses: dict[TrialId, float] = {}

    @property
    def share(self) -> float:
        """The probability that the next configuration is drawn from the priors."""
        ranked = sorted(self._losses, key=lambda trial: (self._losses[trial], trial))
        good = set(ranked[: -(-len(ranked) // _BEST)])
        believed = self._chance(good, {t for t in ranked if t in self._from_prior})
        other = self._chance(good, {t for t in ranked if t not in self._from_prior})
        return believed / (believed + other) * _FADES / (_FADES + len(self._configs))

    @staticmethod
    def _chance(good: set[TrialId], trials: set[TrialId]) -> float:
        return (len(good & trials) + 1) / (len(trials) + 2)

    def propose(self, trial: TrialId) -> Mapping[str, JSON] | None:
        """Return the next configuration; a known trial gets its own again."""
        if trial in self._configs:
            return self._configs[trial]
        index = len(self._configs)
        if self._random("coin", index).random() < self.share:
            config = self._draw(index)
            self.restore(trial, config)
            return config
        proposed = self._searcher.propose(trial)
        if proposed is not None:
            self._configs[trial] = proposed
        return proposed

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Learn of a configuration proposed before a restart; by its values, whether of the priors."""
        if trial not in self._configs:
            if config == self._draw(len(self._configs)):
                self._from_prior.add(trial)
            self._configs[trial] = config
            self._searcher.restore(trial, config)

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        """Let the searcher learn."""
        self._searcher.observe(trial, epoch, metric)

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        """Learn how good a configuration was; a trial that failed was not."""
        if trial in self._configs:
            loss = math.inf if metric is None else self._sign * metric
            self._losses[trial] = loss if math.isfinite(loss) else math.inf  # it may have been tried again
        self._searcher.conclude(trial, metric)

    def conclude_all(self, trial: TrialId, values: Sequence[float], violations: Sequence[float]) -> None:
        """Learn by the first metric and the limits how good it was; let the searcher learn what it can."""
        if trial in self._configs:
            keeps_limits = all(each <= 0 for each in violations)
            self._losses[trial] = self._sign * values[0] if keeps_limits else math.inf
        if isinstance(self._searcher, Multiobjective):
            self._searcher.conclude_all(trial, values, violations)
        else:
            self._searcher.conclude(trial, values[0])

    def _random(self, use: str, index: int) -> random.Random:
        return random.Random(f"{self._seed}:{use}:{index}")  # noqa: S311 - no secret

    def _draw(self, index: int) -> dict[str, JSON]:
        rng = self._random("prior", index)
        return self._space.configure(lambda _, parameter: near_prior(parameter, rng))


def has_priors(space: SearchSpace) -> bool:
    """Return whether any parameter of a space has a prior."""
    return any(not isinstance(p, Constant) and p.prior is not None for p in space.parameters.values())


def near_prior(parameter: Parameter, rng: random.Random) -> JSON:
    """Return a value near a parameter's prior, or any one if it has none.

    Numbers follow a normal distribution around it, cut off at the ends of the range (of its logarithm with
    ``log``); a choice is the believed one with a fixed weight, else any.
    """
    if isinstance(parameter, Constant) or parameter.prior is None:
        return value_at(parameter, rng.random())
    if isinstance(parameter, Choice):
        believed = rng.random() < _WEIGHT[parameter.confidence]
        return parameter.prior if believed else value_at(parameter, rng.random())
    centre = share_at(parameter, cast("float", parameter.prior))  # the space has checked that it is a number
    deviation = _DEVIATION[parameter.confidence]
    while not 0 <= (share := rng.gauss(centre, deviation)) < 1:
        pass  # at least about a half of the draws lie within
    return value_at(parameter, share)
