"""Designs: configurations that do not depend on any result, so that no order of events changes them.

`random` and `sobol` are pure functions of (seed, how many were proposed before); `grid` and `list`
go through a fixed list. All know conditional parameters, which Optuna's grid and quasi-random
samplers do not: those propose the same configuration several times.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, Field, JsonValue, StrictBool

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plugins import Plugin
from parsl_rasda.search.base import SearcherSettings
from parsl_rasda.search.space import Choice, Constant, Float, Int, Parameter, SearchSpace
from parsl_rasda.types import JSON, TrialId

LARGEST_GRID = 100_000


class Design:
    """A searcher that learns nothing from results; `_next` is what a subclass adds."""

    def __init__(self) -> None:
        self._configs: dict[TrialId, Mapping[str, JSON]] = {}

    def propose(self, trial: TrialId) -> Mapping[str, JSON] | None:
        """Return the next configuration; a known trial gets its own again."""
        if trial not in self._configs:
            config = self._next()
            if config is None:
                return None
            self._configs[trial] = config
        return self._configs[trial]

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Count a configuration as proposed."""
        self._configs[trial] = config

    def observe(self, trial: TrialId, epoch: int, metric: float) -> None:
        """Learn nothing."""

    def conclude(self, trial: TrialId, metric: float | None) -> None:
        """Learn nothing."""

    @property
    def proposed(self) -> int:
        """How many configurations were proposed or restored before the next one."""
        return len(self._configs)

    def _next(self) -> Mapping[str, JSON] | None:
        """Return the next configuration, or None if there is none."""
        raise NotImplementedError


class RandomSearcher(Design):
    """Independent draws, each from a generator seeded with (seed, index)."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__()
        self._space, self._seed = space, seed

    def _next(self) -> Mapping[str, JSON]:
        rng = random.Random(f"{self._seed}:{self.proposed}")  # noqa: S311 - no secret
        return self._space.configure(lambda _, parameter: value_at(parameter, rng.random()))


class SobolSearcher(Design):
    """Points of a Sobol sequence, which fill the space more evenly than random ones.

    Each parameter has a dimension of its own, whether it is active or not.

    Source:
        Sobol 1967; scrambling as in Owen 1998, both by SciPy.
    """

    def __init__(self, space: SearchSpace, *, seed: int, scramble: bool = True) -> None:
        super().__init__()
        self._space, self._seed, self._scramble = space, seed, scramble
        self._free = [n for n, p in space.parameters.items() if not isinstance(p, Constant)]

    def _next(self) -> Mapping[str, JSON]:
        from scipy.stats import qmc

        engine = qmc.Sobol(max(1, len(self._free)), scramble=self._scramble, seed=self._seed)
        if self.proposed:
            engine.fast_forward(self.proposed)
        point = dict(zip(self._free, engine.random(1)[0].tolist(), strict=False))
        return self._space.configure(lambda name, parameter: value_at(parameter, point[name]))


class _Fixed(Design):
    """Configurations that are known beforehand, in their order; what was proposed before is passed over.

    By value, not by count: what came first may have been of another grid, or a warm start.
    """

    def __init__(self, configs: Sequence[Mapping[str, JSON]]) -> None:
        super().__init__()
        self._untried = iter(configs)
        self._tried: Counter[str] = Counter()

    def restore(self, trial: TrialId, config: Mapping[str, JSON]) -> None:
        """Count a configuration as proposed."""
        if trial not in self._configs:
            self._tried[_text(config)] += 1
        super().restore(trial, config)

    def _next(self) -> Mapping[str, JSON] | None:
        for config in self._untried:
            text = _text(config)
            if not self._tried[text]:
                return dict(config)
            self._tried[text] -= 1
        return None


class ListedSearcher(_Fixed):
    """The given configurations, in their order."""


class GridSearcher(_Fixed):
    """Every combination once, in an order drawn from the seed.

    Choices, integers and steps give their own levels; other ranges get ``levels`` of them, evenly
    spread. Without ``levels`` the grid is the finest of at most ``num_samples`` points, or has 4 levels.

    Raises:
        InvalidSettingError: If the grid has more than `LARGEST_GRID` points.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, levels: int | None = None, num_samples: int | None = None
    ) -> None:
        self._points = _grid(space, levels if levels is not None else _finest(space, num_samples))
        if len(self._points) > LARGEST_GRID:
            allowed = f"a grid of at most {LARGEST_GRID} points: fewer levels, or wider steps in the space"
            raise InvalidSettingError("searcher.kind", "grid", allowed)
        random.Random(seed).shuffle(self._points)  # noqa: S311 - no secret
        super().__init__(self._points)

    def __len__(self) -> int:
        """Return how many points the grid has; a study with fewer trials tries some of them."""
        return len(self._points)


class SobolOptions(BaseModel):
    """Options of `sobol`."""

    scramble: StrictBool = Field(True, description="Shift the points by the seed.")


class GridOptions(BaseModel):
    """Options of `grid`."""

    levels: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None,
        description="Values of each parameter that has no steps; by default as many as num_samples fill.",
        examples=[5],
    )


class ListOptions(BaseModel):
    """Options of `list`."""

    configs: list[dict[str, JsonValue]] = Field(
        description="a list of configurations", examples=[[{"lr": 0.1}, {"lr": 0.01}]]
    )


def _random(_: BaseModel, settings: SearcherSettings) -> RandomSearcher:
    return RandomSearcher(settings.space, seed=settings.seed)


def _sobol(options: SobolOptions, settings: SearcherSettings) -> SobolSearcher:
    return SobolSearcher(settings.space, seed=settings.seed, scramble=options.scramble)


def _grid_of(options: GridOptions, settings: SearcherSettings) -> GridSearcher:
    return GridSearcher(
        settings.space, seed=settings.seed, levels=options.levels, num_samples=settings.num_samples
    )


def _listed(options: ListOptions, _: SearcherSettings) -> ListedSearcher:
    return ListedSearcher(options.configs)


RANDOM = Plugin(_random)
SOBOL = Plugin(_sobol, SobolOptions)
GRID = Plugin(_grid_of, GridOptions)
LISTED = Plugin(_listed, ListOptions)


def value_at(parameter: Parameter, share: float) -> JSON:
    """Return the value at ``share`` (in [0, 1) of a parameter's range."""
    if isinstance(parameter, Constant):
        return parameter.value
    if isinstance(parameter, Choice):
        return parameter.values[int(share * len(parameter.values))]
    if isinstance(parameter, Int) and parameter.log:
        low, high = math.log(parameter.low - 0.5), math.log(parameter.high + 0.5)
        return min(parameter.high, max(parameter.low, round(math.exp(low + share * (high - low)))))
    if parameter.count is not None:
        return parameter.level(int(share * parameter.count))
    return _between(parameter, share)


def share_at(parameter: Float | Int, value: float) -> float:
    """Return where in its range a parameter has a value: `value_at` of that share gives the value."""
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        half = 0.5 if isinstance(parameter, Int) else 0.0
        low, high, value = math.log(low - half), math.log(high + half), math.log(value)
    elif parameter.count is not None:
        return (round((value - low) / (parameter.step or 1)) + 0.5) / parameter.count
    return (value - low) / (high - low) if high > low else 0.5


def _between(parameter: Float | Int, share: float) -> float:
    low, high = float(parameter.low), float(parameter.high)
    if not parameter.log:
        return low + share * (high - low)
    return min(high, max(low, math.exp(math.log(low) + share * (math.log(high) - math.log(low)))))


def _levels(parameter: Parameter, count: int) -> Sequence[JSON]:
    """Return the values of a parameter on a grid, and no more than tell that there are too many."""
    count = min(count, LARGEST_GRID + 1)
    if isinstance(parameter, Choice):
        return parameter.values
    if isinstance(parameter, Constant):
        return (parameter.value,)
    if parameter.count is not None and not parameter.log:
        return [parameter.level(i) for i in range(min(parameter.count, LARGEST_GRID + 1))]
    spread = [_between(parameter, i / (count - 1) if count > 1 else 0.5) for i in range(count)]
    return list(dict.fromkeys(round(v) if isinstance(parameter, Int) else v for v in spread))


def _grid(space: SearchSpace, count: int) -> list[dict[str, JSON]]:
    """Return the points of a grid, and no more than tell that there are too many."""
    return list(islice(_points(space, count, list(space.parameters.items()), {}), LARGEST_GRID + 1))


def _points(
    space: SearchSpace, count: int, left: Sequence[tuple[str, Parameter]], config: dict[str, JSON]
) -> Iterator[dict[str, JSON]]:
    if not left:
        yield config
        return
    (name, parameter), later = left[0], left[1:]
    if not space.is_active(parameter, config):
        yield from _points(space, count, later, config)
        return
    for value in _levels(parameter, count):
        yield from _points(space, count, later, {**config, name: value})


def _finest(space: SearchSpace, num_samples: int | None) -> int:
    """Return the most levels with which a grid has at most so many points; 2 if no number does."""
    if num_samples is None:
        return 4
    least, most = 2, min(num_samples, LARGEST_GRID)
    size = partial(_size, space, list(space.parameters.items()), {})
    if size(most) == size(least):  # without ranges more levels make no difference
        return least
    return max(least, bisect_right(range(least, most + 1), most, key=size) + 1)


def _size(
    space: SearchSpace, left: Sequence[tuple[str, Parameter]], config: dict[str, JSON], count: int
) -> int:
    """Return how many points a grid has, or some number above `LARGEST_GRID`; none of them is made."""
    if not left:
        return 1
    (name, parameter), later = left[0], left[1:]
    if not space.is_active(parameter, config):
        return _size(space, later, config, count)
    if not any(name in each.when for _, each in later):
        return _number_of_levels(parameter, count) * _size(space, later, config, count)
    total = 0
    for value in _levels(parameter, count):
        total += _size(space, later, {**config, name: value}, count)
        if total > LARGEST_GRID:
            break
    return total


def _number_of_levels(parameter: Parameter, count: int) -> int:
    if isinstance(parameter, Float) and parameter.step is None and parameter.low < parameter.high:
        return count
    return len(_levels(parameter, count))


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
