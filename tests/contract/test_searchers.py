from __future__ import annotations

import pytest

from parsl_rasda.search import build_searcher
from parsl_rasda.search.base import Searcher
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.testing.searchers import SearcherContract


class TestRandom(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "random"}, space, mode="min", seed=seed)


class TestGrid(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "grid", "num_samples": 64}, space, mode="min", seed=seed)


class TestSobol(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "sobol"}, space, mode="min", seed=seed)


class TestTpe(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "tpe", "n_startup_trials": 4}, space, mode="min", seed=seed)


class TestCmaEs(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "cmaes", "popsize": 4}, space, mode="min", seed=seed)


class TestNsgaIi(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "nsgaii", "population_size": 4}, space, mode="min", seed=seed)


@pytest.mark.slow
class TestGaussianProcess(SearcherContract):
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        return build_searcher({"kind": "gp", "n_startup_trials": 10}, space, mode="min", seed=seed)
