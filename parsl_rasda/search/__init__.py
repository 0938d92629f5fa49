"""Which configurations: designs of our own, and a thin port over Optuna's samplers.

Read `base` (the port), `space` (what may be searched), `designs` (random, grid, sobol, list: no result
changes them), `optuna_searcher` (tpe, gp, cmaes, nsgaii: they learn), `priors` and `warm` (known first).

>>> space = SearchSpace.from_mapping({"lr": {"float": [1.0e-4, 0.1], "log": True}, "depth": 3})
>>> searcher = build_searcher({"kind": "list", "configs": [{"lr": 0.1}]}, space, mode="min", seed=7)
>>> searcher.propose("a"), searcher.propose("b")
({'lr': 0.1}, None)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parsl_rasda.plugins import SEARCHERS
from parsl_rasda.search.base import Searcher, SearcherSettings
from parsl_rasda.search.priors import WithPriors, has_priors
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.types import Mode

__all__ = ["SearchSpace", "Searcher", "SearcherSettings", "build_searcher"]


def build_searcher(  # what a study says of its metrics
    settings: Mapping[str, Any],
    space: SearchSpace,
    *,
    mode: str,
    seed: int,
    other_modes: tuple[Mode, ...] = (),
    limits: int = 0,
) -> Searcher:
    """Return the searcher of a study's ``searcher`` block.

    Args:
        settings: ``kind``, the options of that searcher or sampler under its own names, and optionally
            ``num_samples``, which sizes a grid.
        space: What may be searched.
        mode: ``min`` or ``max``.
        seed: Of everything that is drawn.
        other_modes: Of further metrics, if there are several.
        limits: How many constraints trials must keep.

    Raises:
        InvalidFileError: If there is no such searcher, or its options are wrong.
        InvalidSettingError: If the searcher refuses the space, or an option of Optuna's sampler.
    """
    choice = {"kind": "random", **settings}
    number = choice.pop("num_samples", None)
    searcher: Searcher = SEARCHERS.build(
        choice, SearcherSettings(space, Mode(mode), seed, number, other_modes, limits)
    )
    return WithPriors(searcher, space, mode=Mode(mode), seed=seed) if has_priors(space) else searcher
