"""What every searcher must do: a suite for the built-in ones and for plug-ins.

A plug-in author's whole test file::

    class TestMine(SearcherContract):
        def build(self, space, *, seed):
            return build_searcher({"kind": "mine"}, space, mode="min", seed=seed)
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod

from parsl_rasda.search.base import Searcher
from parsl_rasda.search.space import Choice, Constant, Float, Int, SearchSpace
from parsl_rasda.types import TrialId

SPACE = SearchSpace(
    {
        "lr": Float(1e-4, 1e-1, log=True),
        "optimizer": Choice(("sgd", "adamw")),
        "momentum": Float(0.0, 0.99, when={"optimizer": "sgd"}),
        "layers": Int(1, 4),
        "dropout": Float(0.0, 0.5, step=0.1, when={"layers": [3, 4]}),
        "epochs": Constant(8),
    }
)


class SearcherContract(ABC):
    """Inherit and write `build`; pytest finds the rest.

    The contract is about any searcher of the port `Searcher`, whatever it learns: configurations lie
    in the space, depend on nothing but the seed and the calls, and survive a restart.
    """

    @abstractmethod
    def build(self, space: SearchSpace, *, seed: int) -> Searcher:
        """Return a fresh searcher for a metric to be minimised."""

    def test_configurations_lie_in_the_space(self) -> None:
        for config in self._proposals(self.build(SPACE, seed=1), 0, 12):
            assert SPACE.accepts(json.loads(config)), config

    def test_parameters_whose_conditions_do_not_hold_are_absent(self) -> None:
        for text in self._proposals(self.build(SPACE, seed=1), 0, 12):
            config = json.loads(text)
            assert ("momentum" in config) == (config["optimizer"] == "sgd")
            assert ("dropout" in config) == (config["layers"] >= 3)

    def test_the_same_seed_gives_the_same_configurations(self) -> None:
        one, same, other = (self._proposals(self.build(SPACE, seed=s), 0, 8) for s in (1, 1, 2))
        assert one == same
        assert one != other

    def test_a_known_trial_gets_its_configuration_again(self) -> None:
        searcher = self.build(SPACE, seed=1)
        first = searcher.propose(_named(0))
        assert searcher.propose(_named(0)) == first
        assert searcher.propose(_named(1)) != first

    def test_a_restart_goes_on_as_if_nothing_had_happened(self) -> None:
        whole = self.build(SPACE, seed=1)
        before = self._proposals(whole, 0, 12)
        after = self._proposals(whole, 12, 18)

        resumed = self.build(SPACE, seed=1)
        for index, config in enumerate(before):
            resumed.restore(_named(index), json.loads(config))
            self._train(resumed, index, config)
        again = self._proposals(resumed, 12, 18)
        assert again == after
        assert len({*before, *again}) == len(before) + len(again)

    def test_failed_and_diverged_trials_are_tolerated(self) -> None:
        searcher = self.build(SPACE, seed=1)
        for index, metric in enumerate([None, math.nan, math.inf, -math.inf, 1.0, None] * 3):
            config = searcher.propose(_named(index))
            assert config is not None
            assert SPACE.accepts(config)
            searcher.observe(_named(index), 1, math.nan if metric is None else metric)
            searcher.conclude(_named(index), metric)
            searcher.conclude(_named(index), metric)

    def test_news_of_an_unknown_trial_is_ignored(self) -> None:
        searcher = self.build(SPACE, seed=1)
        searcher.observe(_named(99), 1, 0.5)
        searcher.conclude(_named(99), 0.5)
        assert self._proposals(searcher, 0, 4) == self._proposals(self.build(SPACE, seed=1), 0, 4)

    def _proposals(self, searcher: Searcher, first: int, end: int) -> list[str]:
        """Return configurations as JSON, each of them trained before the next is proposed."""
        configs = []
        for index in range(first, end):
            config = searcher.propose(_named(index))
            assert config is not None
            configs.append(json.dumps(config))
            self._train(searcher, index, configs[-1])
        return configs

    def _train(self, searcher: Searcher, index: int, config: str) -> None:
        loss = abs(math.log10(json.loads(config)["lr"]) + 2.5)
        searcher.observe(_named(index), 1, loss + 1)
        searcher.conclude(_named(index), loss)


def _named(index: int) -> TrialId:
    return TrialId(f"t{index:02d}")
