"""The search space as plain data: what may be searched, and what depends on what.

Knows nothing of files or of how values are chosen. A parameter with conditions is absent from a
configuration unless earlier parameters have the values it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TypeAlias

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.study.parameters import hashable
from parsl_rasda.types import JSON

CONFIDENCES = ("low", "medium", "high")  # how sure a prior is
Conditions: TypeAlias = Mapping[str, JSON]  # earlier parameter -> its value, or a list of its values


@dataclass(frozen=True, slots=True)
class Float:
    """A real number from ``low`` to ``high``, both included; ``log`` searches its logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Conditions = field(default_factory=dict)
    prior: JSON = None
    confidence: str = "medium"

    @property
    def count(self) -> int | None:
        """How many values there are, or None without a step."""
        if self.step is None:
            return None
        # Decimal: 0.3 is three steps of 0.1, which it is not in binary.
        return int((_decimal(self.high) - _decimal(self.low)) // _decimal(self.step)) + 1

    def level(self, index: int) -> float:
        """Return the value ``index`` steps above `low`."""
        return float(_decimal(self.low) + index * _decimal(self.step or 0))

    def nearest(self, value: float) -> float:
        """Return the level next to ``value``; without a step that is the value itself."""
        return self.level(round((value - self.low) / self.step)) if self.step else value


@dataclass(frozen=True, slots=True)
class Int:
    """An integer from ``low`` to ``high``, both included."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: Conditions = field(default_factory=dict)
    prior: JSON = None
    confidence: str = "medium"

    @property
    def count(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def level(self, index: int) -> int:
        """Return the value ``index`` steps above `low`."""
        return self.low + index * self.step

    def nearest(self, value: float) -> int:
        """Return the level next to ``value``."""
        return self.level(round((value - self.low) / self.step))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values, of any JSON type, in no order."""

    values: tuple[JSON, ...]
    when: Conditions = field(default_factory=dict)
    prior: JSON = None
    confidence: str = "medium"


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same in every configuration."""

    value: JSON
    when: Conditions = field(default_factory=dict)


Parameter: TypeAlias = Float | Int | Choice | Constant


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Parameters by name, in an order in which conditions look back.

    Raises:
        InvalidSettingError: If a parameter allows no value, or a condition can never hold.
    """

    parameters: Mapping[str, Parameter]

    def __post_init__(self) -> None:
        earlier: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            _check_range(f"search_space.{name}", parameter)
            _check_conditions(f"search_space.{name}.when", parameter, earlier)
            earlier[name] = parameter

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, JSON]) -> SearchSpace:
        """Return the space that a study file's ``search_space`` block spells; see `parameter_from`."""
        return cls({name: parameter_from(value, f"search_space.{name}") for name, value in mapping.items()})

    def configure(self, value_of: Callable[[str, Parameter], JSON]) -> dict[str, JSON]:
        """Return a configuration: each parameter whose conditions hold gets ``value_of(name, it)``.

        Constants are filled in without asking.
        """
        config: dict[str, JSON] = {}
        for name, parameter in self.parameters.items():
            if self.is_active(parameter, config):
                config[name] = (
                    parameter.value if isinstance(parameter, Constant) else value_of(name, parameter)
                )
        return config

    def is_active(self, parameter: Parameter, config: Mapping[str, JSON]) -> bool:
        """Return whether the conditions of ``parameter`` hold in a configuration of the earlier ones."""
        return all(
            other in config and any(same_value(config[other], value) for value in _as_list(wanted))
            for other, wanted in parameter.when.items()
        )

    def accepts(self, config: Mapping[str, JSON]) -> bool:
        """Return whether ``config`` is a configuration of this space: nothing missing, nothing beyond."""
        active = {name for name, p in self.parameters.items() if self.is_active(p, config)}
        return set(config) == active and all(
            contains(self.parameters[name], value) for name, value in config.items()
        )


def parameter_from(data: JSON, key: str = "parameter") -> Parameter:
    """Return the parameter that a value of the ``search_space`` block spells.

    ``{float: [lo, hi], log: true, step: x}``, ``{int: [lo, hi], log: true, step: n}``, ``{choice: [..]}``,
    each with ``when: {other: value-or-list}``; anything but a mapping is a constant, and
    ``{constant: value}`` is one that may have conditions.

    Args:
        data: The value, as YAML gives it.
        key: Where it stands, for the error.

    Raises:
        InvalidSettingError: If it spells no parameter.
    """
    if not isinstance(data, dict):
        return Constant(data)
    kinds = [kind for kind in _OPTIONS if kind in data]
    if len(kinds) != 1:
        raise InvalidSettingError(key, data, f"a value, or a mapping with one of {', '.join(_OPTIONS)}")
    kind = kinds[0]
    for option in data:
        if option not in (kind, *_OPTIONS[kind]):
            raise InvalidSettingError(f"{key}.{option}", data[option], f"beside {kind}: {_OPTIONS[kind]}")
    parameter = _build(kind, data, key)
    _check_range(key, parameter)
    return _with_prior(parameter, data, key)


def contains(parameter: Parameter, value: JSON) -> bool:
    """Return whether ``value`` is one that ``parameter`` can take."""
    if isinstance(parameter, Choice):
        return any(same_value(value, each) for each in parameter.values)
    if isinstance(parameter, Constant):
        return same_value(value, parameter.value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not parameter.low <= value <= parameter.high:
        return False
    return parameter.step is None or parameter.nearest(value) == value


def own_form(parameter: Parameter, value: JSON) -> JSON:
    """Return a value that ``parameter`` can take as it would give it: 2.0 of an integer is 2."""
    if isinstance(parameter, Choice):
        return next(each for each in parameter.values if same_value(value, each))
    return int(value) if isinstance(parameter, Int) and isinstance(value, float) else value


def same_value(one: JSON, other: JSON) -> bool:
    """Return whether two values are equal, where True is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "float": ("log", "step", "prior", "confidence", "when"),
    "int": ("log", "step", "prior", "confidence", "when"),
    "choice": ("prior", "confidence", "when"),
    "constant": ("when",),
}


def _build(kind: str, data: Mapping[str, JSON], key: str) -> Parameter:
    found, when = data[kind], data.get("when") or {}
    if not isinstance(when, dict):
        raise InvalidSettingError(f"{key}.when", when, "{earlier parameter: value or list of values}")
    if kind == "constant":
        return Constant(found, when)
    if kind == "choice":
        if not isinstance(found, list):
            raise InvalidSettingError(f"{key}.choice", found, "a list of values")
        return Choice(tuple(found), when)
    log = data.get("log", False)
    if not isinstance(log, bool):
        raise InvalidSettingError(f"{key}.log", log, "true, false")
    if not isinstance(found, list) or len(found) != 2:  # noqa: PLR2004 - low and high
        raise InvalidSettingError(f"{key}.{kind}", found, "[low, high]")
    step = data.get("step")
    if kind == "float":
        low, high = (_number(f"{key}.float", bound) for bound in found)
        return Float(low, high, log, None if step is None else _number(f"{key}.step", step), when)
    first, last = (_integer(f"{key}.int", bound) for bound in found)
    return Int(first, last, log, 1 if step is None else _integer(f"{key}.step", step), when)


def _with_prior(parameter: Parameter, data: Mapping[str, JSON], key: str) -> Parameter:
    prior, confidence = data.get("prior"), data.get("confidence")
    if isinstance(parameter, Constant) or prior is None:
        if confidence is not None:
            raise InvalidSettingError(f"{key}.confidence", confidence, "a prior beside it")
        return parameter
    if not contains(parameter, prior):
        raise InvalidSettingError(f"{key}.prior", prior, "a value that the parameter can take")
    if confidence not in (None, *CONFIDENCES):
        raise InvalidSettingError(f"{key}.confidence", confidence, ", ".join(CONFIDENCES))
    return replace(parameter, prior=own_form(parameter, prior), confidence=str(confidence or "medium"))


def _number(key: str, found: JSON) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        hint = "a finite number" + (
            " (YAML reads 1e-4 as a string: write 1.0e-4)" if isinstance(found, str) else ""
        )
        raise InvalidSettingError(key, found, hint)
    return float(found)


def _integer(key: str, found: JSON) -> int:
    if isinstance(found, bool) or not isinstance(found, int):
        raise InvalidSettingError(key, found, "an integer")
    return found


def _check_range(key: str, parameter: Parameter) -> None:
    if isinstance(parameter, Choice):
        values = parameter.values
        if not values or len({hashable(value) for value in values}) < len(values):
            raise InvalidSettingError(f"{key}.choice", list(values), "at least one value, each of them once")
        return
    if isinstance(parameter, Constant):
        return
    kind = "float" if isinstance(parameter, Float) else "int"
    bounds = [parameter.low, parameter.high]
    if parameter.low > parameter.high:
        raise InvalidSettingError(f"{key}.{kind}", bounds, "low not above high")
    if parameter.log and parameter.low <= 0:
        raise InvalidSettingError(f"{key}.{kind}", bounds, "low above 0, because of `log: true`")
    if parameter.step is not None and parameter.step <= 0:
        raise InvalidSettingError(f"{key}.step", parameter.step, "a step above 0")
    if parameter.log and parameter.step not in (None, 1):
        raise InvalidSettingError(f"{key}.step", parameter.step, "no step together with `log: true`")


def _check_conditions(key: str, parameter: Parameter, earlier: Mapping[str, Parameter]) -> None:
    for other, wanted in parameter.when.items():
        if other not in earlier:
            names = ", ".join(earlier) or "there is none before it"
            raise InvalidSettingError(f"{key}.{other}", other, f"a parameter above it: {names}")
        if not (values := _as_list(wanted)):
            raise InvalidSettingError(f"{key}.{other}", wanted, "at least one value")
        parent = earlier[other]
        known = {hashable(v) for v in parent.values} if isinstance(parent, Choice) else None
        for value in values:
            if hashable(value) not in known if known is not None else not _can_be(parent, value):
                allowed = f"a value that {other} can take: {parent}"
                raise InvalidSettingError(f"{key}.{other}", value, allowed)


def _can_be(parameter: Parameter, value: JSON) -> bool:
    """Return whether a condition on ``value`` can hold; a real number without a step never equals one."""
    is_continuous = isinstance(parameter, Float) and parameter.step is None
    return contains(parameter, value) and not is_continuous


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))


def _as_list(wanted: JSON) -> Sequence[JSON]:
    return wanted if isinstance(wanted, list) else [wanted]
