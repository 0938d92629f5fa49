"""Which configurations: designs of our own, and a thin port over Optuna's samplers.

Read `base` (the port), `space` (what may be searched), `designs` (random, grid, sobol, list: no result
changes them), `optuna_searcher` (tpe, gp, cmaes: they learn).

>>> space = SearchSpace.from_mapping({"lr": {"float": [1.0e-4, 0.1], "log": True}, "depth": 3})
>>> searcher = build_searcher({"kind": "list", "configs": [{"lr": 0.1}]}, space, mode="min", seed=7)
>>> searcher.propose("a"), searcher.propose("b")
({'lr': 0.1}, None)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from parsl_rasda.diagnostics import suggestion
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plugins import load_plugin
from parsl_rasda.search.base import Searcher
from parsl_rasda.search.designs import GridSearcher, ListedSearcher, RandomSearcher, SobolSearcher
from parsl_rasda.search.optuna_searcher import SAMPLERS, OptunaSearcher
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.types import Mode

ENTRY_POINTS = "parsl_rasda.searchers"
DESIGNS: Mapping[str, type[Any]] = {"random": RandomSearcher, "grid": GridSearcher, "sobol": SobolSearcher}
KINDS = (*DESIGNS, *SAMPLERS, "list")

_PLAIN: Mapping[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
# Set by us, or about Optuna's own messages.
_RESERVED = {"seed", "num_samples", "warn_independent_sampling"}


def build_searcher(settings: Mapping[str, Any], space: SearchSpace, *, mode: str, seed: int) -> Searcher:
    """Return the searcher of a study's ``searcher`` block.

    Args:
        settings: ``kind``, the options of that searcher or sampler under its own names, and optionally
            ``num_samples``, which sizes a grid. ``list`` takes ``configs``.
        space: What may be searched.
        mode: ``min`` or ``max``.
        seed: Of everything that is drawn.

    Another ``kind`` is looked up among the installed entry points of `ENTRY_POINTS`; such a plug-in is
    called as this function is.

    Raises:
        InvalidSettingError: If a key is unknown or a value is not allowed.
    """
    kind = settings.get("kind", "random")
    if kind not in KINDS:
        plugin = load_plugin(ENTRY_POINTS, kind, key="searcher.kind", built_in=KINDS)
        return cast("Callable[..., Searcher]", plugin)(settings, space, mode=mode, seed=seed)
    given = {key: value for key, value in settings.items() if key not in {"kind", "num_samples"}}
    if kind == "list":
        return ListedSearcher(_configs(given))
    if kind in SAMPLERS:
        return _learning(kind, given, space, Mode(mode), seed)
    make = DESIGNS[kind]
    _check_options(kind, make, given)
    if "num_samples" in inspect.signature(make).parameters:
        given["num_samples"] = settings.get("num_samples")
    return cast("Searcher", make(space, seed=seed, **given))


def _learning(kind: str, given: Mapping[str, Any], space: SearchSpace, mode: Mode, seed: int) -> Searcher:
    import optuna.samplers

    make = getattr(optuna.samplers, SAMPLERS[kind])
    _check_options(kind, make, given)
    silent = kind != "tpe"  # TPE is silent by default, and deprecates the switch
    fixed = {"warn_independent_sampling": False} if silent else {}
    try:
        return OptunaSearcher(
            space,
            lambda seed: make(seed=seed, **fixed, **given),
            mode=mode,
            seed=seed,
            keeps_state=kind == "cmaes",
        )
    except (ValueError, TypeError) as error:
        raise InvalidSettingError("searcher", dict(given), f"what {SAMPLERS[kind]} takes: {error}") from error


def _check_options(kind: str, make: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Compare the options with a constructor's parameters of plain types; others cannot come from YAML."""
    allowed = {}
    for name, parameter in inspect.signature(make).parameters.items():
        types = str(parameter.annotation).split(" | ")
        if name not in _RESERVED and all(each in _PLAIN for each in types):
            allowed[name] = types
    for name, value in given.items():
        if name not in allowed:
            listed = ", ".join(allowed) or "none"
            options = f"the options of {kind}: {listed}{suggestion(name, allowed)}"
            raise InvalidSettingError(f"searcher.{name}", value, options)
        types = allowed[name]
        is_boolean = isinstance(value, bool)
        if (is_boolean and "bool" not in types) or not any(isinstance(value, _PLAIN[each]) for each in types):
            raise InvalidSettingError(f"searcher.{name}", value, " or ".join(types))


def _configs(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for name in given:
        if name != "configs":
            raise InvalidSettingError(f"searcher.{name}", given[name], "the option of list: configs")
    configs = given.get("configs")
    if not isinstance(configs, list) or not all(isinstance(config, Mapping) for config in configs):
        raise InvalidSettingError("searcher.configs", configs, "a list of configurations")
    return configs
