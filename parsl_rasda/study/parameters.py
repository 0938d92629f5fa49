"""The forms of a search space, as a study file writes them.

A parameter is a mapping with one of ``float``, ``int``, ``choice``, ``constant``, or a constant itself::

    lr: {float: [1.0e-4, 1.0e-1], log: true}
    depth: {int: [2, 8], step: 2}
    optimizer: {choice: [sgd, adamw]}
    momentum: {float: [0.0, 0.99], when: {optimizer: sgd}}
    width: {int: [16, 512], log: true, prior: 128, confidence: high}
    depth_of_stem: 2
    nesterov: {constant: true, when: {optimizer: sgd}}

Only the form is checked here; `parsl_rasda.search` draws from it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    StrictInt,
    Tag,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from parsl_rasda.diagnostics import MARK, Plain, is_number, listing, mapping_at, refused, shown, suggestion
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import LARGEST_NUMBER, Count, Flag, Identifier, Number, Spec, exactly_one, variant

LARGEST_INT = 2**53  # searchers draw real numbers, which are exact so far
MOST_STEPS = 1e9
MOST_CHOICES = 10_000
MOST_PARAMETERS = 1_000

KINDS = ("float", "int", "choice", "constant")
_one_kind = exactly_one(*KINDS)


def _some(value: object) -> object:
    if value in ([], ()):
        raise refused(value, "a value, or a list of at least one")
    return value


When = Annotated[
    Mapping[Identifier, Annotated[JsonValue, BeforeValidator(_some)]],
    Field(description="Parameter -> value or list of values: this parameter exists only then."),
]
SCALAR: JsonSchemaValue = {"type": ["string", "number", "boolean", "null"]}


Confidence: TypeAlias = Literal["low", "medium", "high"]


def _form_of_prior(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the JSON Schema of a form with which ``confidence`` needs a ``prior``."""
    none = {"properties": {"confidence": {"const": None}}}
    return {**schema, "dependencies": {"confidence": {"anyOf": [{"required": ["prior"]}, none]}}}


def _form_of_log(schema: JsonSchemaValue, key: str, least: JsonSchemaValue) -> JsonSchemaValue:
    """Return the JSON Schema of a form that excludes ``step`` together with ``log``."""
    low = {"properties": {key: {"items": least}, "step": {"const": 1} if key == "int" else False}}
    is_log = {"properties": {"log": {"const": True}}, "required": ["log"]}
    return {**_form_of_prior(schema), "if": is_log, "then": low}


class FloatForm(Spec):
    """A real number between two bounds, both included."""

    float: tuple[Number, Number] = Field(description="[low, high]")
    log: Flag = Field(False, description="Draw the logarithm uniformly; needs low > 0.")
    step: Number | None = Field(
        None, gt=0, description="Distance between values; not with log.", examples=[0.1]
    )
    prior: Number | None = Field(None, description="A value that is believed to be good.", examples=[1e-3])
    confidence: Confidence | None = Field(
        None,
        description="How sure the prior is: low, medium (default) or high; how near to it one looks.",
        examples=["high"],
    )
    when: When = Field(default_factory=dict)

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, with what `log` excludes."""
        return _form_of_log(schema, "float", {"exclusiveMinimum": 0})

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield bounds that enclose nothing, and settings that exclude each other."""
        yield from _bounds(plain, "float")
        yield from _prior(plain, "float")


class IntForm(Spec):
    """A whole number between two bounds, both included."""

    int: tuple[StrictInt, StrictInt] = Field(description="[low, high]")
    log: Flag = Field(False, description="Draw the logarithm uniformly; needs low >= 1.")
    step: Count = Field(1, description="Distance between values; 1 with log.")
    prior: StrictInt | None = Field(None, description="A value that is believed to be good.", examples=[4])
    confidence: Confidence | None = Field(
        None,
        description="How sure the prior is: low, medium (default) or high; how near to it one looks.",
        examples=["high"],
    )
    when: When = Field(default_factory=dict)

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, with what `log` excludes."""
        return _form_of_log(schema, "int", {"minimum": 1})

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield bounds that enclose nothing, and settings that exclude each other."""
        yield from _bounds(plain, "int")
        yield from _prior(plain, "int")


class ChoiceForm(Spec):
    """One of the listed values."""

    choice: tuple[JsonValue, ...] = Field(
        min_length=1,
        max_length=MOST_CHOICES,
        description="The values, without order.",
        json_schema_extra={"uniqueItems": True},
    )
    prior: JsonValue | None = Field(
        None, description="A value that is believed to be good.", examples=["adamw"]
    )
    confidence: Confidence | None = Field(
        None,
        description="How sure the prior is: low, medium (default) or high; how near to it one looks.",
        examples=["high"],
    )
    when: When = Field(default_factory=dict)

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, of which `confidence` needs `prior`."""
        return _form_of_prior(schema)

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield values that are listed twice, and a prior that is none of them."""
        yield from _prior(plain, "choice")
        values = plain.get("choice")
        seen: set[Hashable] = set()
        for i, value in enumerate(values if isinstance(values, list | tuple) else ()):
            if (form := hashable(value)) in seen:
                yield Diagnostic(("choice", i), f"{shown(value)} a second time", "each value once")
            seen.add(form)


class ConstantForm(Spec):
    """A value that is the same in every trial."""

    constant: JsonValue = Field(description="The value.")
    when: When = Field(default_factory=dict)


def _tag(value: object) -> str:
    return variant(value, KINDS) or MARK + "value"


def _of_one_kind(value: object) -> object:
    if isinstance(value, list | tuple):
        raise refused(value, _no_constant(value))
    return _one_kind(value) if isinstance(value, Mapping) else value


def _no_constant(values: Sequence[object]) -> str:
    """Return what is allowed in place of a bare list: it could be anything."""
    forms = [f"{{choice: {shown(values)}}}"]
    if len(values) == 2 and all(is_number(v) for v in values):  # noqa: PLR2004 - low and high
        is_whole = all(isinstance(v, int) for v in values)
        forms.append(f"{{{'int' if is_whole else 'float'}: {shown(values)}}}")
    meant = " or ".join(forms)
    return f"a mapping with one of {listing(KINDS)}, or a constant that is no list (did you mean {meant}?)"


ParameterForm = Annotated[
    Annotated[FloatForm, Tag(MARK + "float")]
    | Annotated[IntForm, Tag(MARK + "int")]
    | Annotated[ChoiceForm, Tag(MARK + "choice")]
    | Annotated[ConstantForm, Tag(MARK + "constant")]
    | Annotated[JsonValue, WithJsonSchema(SCALAR), Tag(MARK + "value")],
    Discriminator(_tag),
    BeforeValidator(_of_one_kind),
]
_FORMS: TypeAdapter[Any] = TypeAdapter(Mapping[Identifier, ParameterForm])


def _checked(value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    _FORMS.validate_python(value)
    return value


class _FormOfAll:
    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(_FORMS.core_schema)


SearchSpaceForm = Annotated[Mapping[str, JsonValue], AfterValidator(_checked), _FormOfAll()]


def hashable(value: object) -> Hashable:
    """Return what is equal for equal values, where true is not 1, and can be in a set."""
    return (isinstance(value, bool), _frozen(value))


def _frozen(value: object) -> Hashable:
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, _frozen(each)) for key, each in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(map(_frozen, value)))
    try:
        hash(value)
    except TypeError:  # of a program, which may declare anything; a file cannot
        return repr(value)
    return value


def searched_in(space: Plain) -> list[str]:
    """Return the names of the parameters that are no constants."""
    return [n for n, p in space.items() if isinstance(p, Mapping) and "constant" not in p]


def space_problems(space: Plain) -> Iterator[Diagnostic]:
    """Yield every `when` that no value of an earlier parameter can fulfil."""
    earlier: dict[str, Any] = {}
    for name, parameter in islice(space.items(), MOST_PARAMETERS):
        for condition, values in mapping_at(parameter, "when").items():
            loc = (name, "when", condition)
            if condition not in earlier:
                found = "a later parameter" if condition in space else "no such parameter"
                yield Diagnostic(
                    loc, found, f"an earlier one: {listing(earlier)}{suggestion(condition, earlier)}"
                )
                continue
            can_be = _possible(earlier[condition])
            for value in values if isinstance(values, list) else [values]:
                if not can_be(value):
                    yield Diagnostic(
                        loc, shown(value), f"a value of {condition}: {shown(earlier[condition])}"
                    )
        earlier[name] = parameter


def _bounds(plain: Plain, key: str) -> Iterator[Diagnostic]:
    if (bounds := _low_high(plain.get(key))) is None:
        return
    low, high = bounds
    for limit in (low, high):
        if not abs(limit) <= (LARGEST_NUMBER if key == "float" else LARGEST_INT):
            largest = f"{LARGEST_NUMBER:g}" if key == "float" else str(LARGEST_INT)
            yield Diagnostic((key,), shown(limit), f"numbers from -{largest} to {largest}")
            return
    step = plain.get("step")
    if key == "float" and is_number(step) and step > 0 and (high - low) / step > MOST_STEPS:
        yield Diagnostic(("step",), f"{shown(step)}, which makes too many values", f"at most {MOST_STEPS:g}")
    if low > high:
        yield Diagnostic((key,), shown(bounds), "[low, high], low first")
    if plain.get("log") is True:
        if not low > 0:
            yield Diagnostic((key,), shown(bounds), "low > 0, because of `log: true`")
        if (step := plain.get("step")) is not None and not (key == "int" and step == 1):
            yield Diagnostic(("step",), shown(step), "no step together with `log: true`")


def with_prior(space: Plain) -> list[str]:
    """Return the names of the parameters that have a prior."""
    return [n for n, p in space.items() if isinstance(p, Mapping) and p.get("prior") is not None]


def _prior(plain: Plain, key: str) -> Iterator[Diagnostic]:
    prior = plain.get("prior")
    if prior is None:
        if plain.get("confidence") is not None:
            yield Diagnostic(
                ("confidence",), f"{shown(plain['confidence'])} in no prior", "a prior beside it"
            )
        return
    if not _can_take(plain, prior):
        yield Diagnostic(("prior",), shown(prior), f"a value of {key}: {shown(plain.get(key))}")


def first_problems(configs: object, space: Plain) -> Iterator[Diagnostic]:
    """Yield what a configuration that is tried first says of no parameter, or what that cannot be."""
    for i, config in enumerate(configs if isinstance(configs, list | tuple) else ()):
        for name, value in config.items() if isinstance(config, Mapping) else ():
            if name not in space:
                allowed = f"a parameter of the search space: {listing(space)}{suggestion(str(name), space)}"
                yield Diagnostic((i, name), "no parameter", allowed)
            elif not _can_take(space[name], value):
                yield Diagnostic((i, name), shown(value), f"a value of {name}: {shown(space[name])}")


def _can_take(parameter: object, value: object) -> bool:
    """Return whether a parameter can have a value; one whose form is wrong is named elsewhere."""
    if isinstance(parameter, Mapping) and "float" in parameter and parameter.get("step") is None:
        bounds = _low_high(parameter["float"])
        return bounds is None or (is_number(value) and bounds[0] <= value <= bounds[1])
    return _possible(parameter)(value)


def _possible(parameter: object) -> Callable[[object], bool]:
    """Return whether a parameter can be exactly a value; one whose form is wrong is named elsewhere."""
    values = [parameter]
    if isinstance(parameter, Mapping):
        if isinstance(choices := parameter.get("choice"), list | tuple):
            values = list(choices)
        elif "constant" in parameter:
            values = [parameter["constant"]]
        else:
            return lambda value: _on_a_step(parameter, value)
    known = {hashable(value) for value in values}
    return lambda value: hashable(value) in known


def _on_a_step(parameter: Plain, value: object) -> bool:
    bounds = _low_high(parameter.get("float", parameter.get("int")))
    step = parameter.get("step", 1 if "int" in parameter else None)
    if bounds is None or not (step is None or (is_number(step) and step > 0)):
        return True
    if step is None or not is_number(value) or not bounds[0] <= value <= bounds[1]:
        return False
    if not (bounds[1] - bounds[0]) / step <= MOST_STEPS:
        return True
    low, at, distance = (Decimal(repr(x)) for x in (bounds[0], value, step))  # 0.3 is 3 steps of 0.1
    return (at - low) % distance == 0


def _low_high(value: object) -> tuple[float, float] | None:
    match value:
        case [low, high] if is_number(low) and is_number(high):
            return low, high
        case _:
            return None
