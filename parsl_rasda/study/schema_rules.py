"""What a JSON Schema can say of a study beyond the form of each key: names that refer to others, and order.

A schema cannot say that a value is the name of another key, nor that one number is below another. But where
all parameters (or stages) of a study have usual names, a reference to any other name is a mistake, and most
often a misspelling; what a setting names by a usual name can be looked at there; and numbers can be held
against steps of a scale. Each rule refuses only what `validate` refuses, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from parsl_rasda.study.training import TRAINING_PLACEHOLDERS

Schema = dict[str, Any]  # Any: JSON

_NUMBERS = ("batch", "batch_size", "bs", "lr", "momentum", "optimizer", "warmup", "weight_decay", "width")
PARAMETERS = (
    *_NUMBERS, "activation", "alpha", "beta", "beta1", "beta2", "channels", "decay", "depth", "dim",
    "dropout", "epsilon", "gamma", "heads", "hidden", "kernel_size", "label_smoothing", "layers",
    "learning_rate", "loss", "modes", "nesterov", "num_layers", "scheduler", "temperature", "units",
    "warmup_epochs", "wd",
)  # fmt: skip
_NO_SEARCH = ("simulate", "prepare", "preprocess", "data", "evaluate")
STAGES = (
    *_NO_SEARCH, "coarse", "fine", "generate", "mesh", "plot", "report", "search", "test", "train", "tune",
)  # fmt: skip
_ARGUMENTS = ("data", "fields", "grid", "path", "seed", "steps")

_EPOCHS = (*range(1, 13), 16, 20, 24, 32, 48, 64, 96, 100, 128, 200, 256, 512, 1000, 1024)
_REALS = (-1.0, 0.0, *(10.0**k for k in range(-8, 5)))
_WHOLE = (0, *(2**k for k in range(13)))


def with_rules(study: Schema, *, installed: bool) -> Schema:
    """Return the JSON Schema of studies with all rules.

    Args:
        study: Their schema without them.
        installed: With what is so by the packages that are installed here.
    """
    forms: Schema = study["$defs"]
    more = {
        "WholeParameter": _gives("integer", 1, ("int",)),
        "NumberParameter": _gives("number", 0, ("int", "float")),
        "GivenOnce": {"type": "object", "allOf": [*_given_once()]},
    }
    rules: dict[str, list[Schema]] = {
        "TuneSpec": [_usual_parameters(), *_named_numbers(), *([_known_protocol()] if installed else [])],
        "TuneStage": [_usual_placeholders(), {"$ref": "#/$defs/GivenOnce"}],
        "PythonStage": [{"$ref": "#/$defs/GivenOnce"}],
        "CommandStage": [{"$ref": "#/$defs/GivenOnce"}],
        "SchedulerSpec": [
            *_not_above("grace_period", "max_t"),
            *_not_above("num_workers", "max_workers"),
            *_leaves_a_rung(),
        ],
        "FloatForm": [*_low_first("float", _REALS)],
        "IntForm": [*_low_first("int", _WHOLE)],
    }
    added = {name: _with_all(forms[name], of_form) for name, of_form in rules.items()}
    whole = [_usual_stages(), *_warm_starts(), _usual_placeholders()]
    return _with_all({**study, "$defs": {**forms, **added, **more}}, whole)


def _with_all(form: Schema, rules: list[Schema]) -> Schema:
    return {**form, "allOf": [*form.get("allOf", []), *rules]}


def _if(holds: Schema, then: Schema) -> Schema:
    return {"if": holds, "then": then}


def _at(*way: str, is_there: bool = False, **form: Any) -> Schema:
    """Return the schema of what holds at a place, if it is there, or only if."""
    for key in reversed(way):
        form = {"properties": {key: form}} | ({"required": [key]} if is_there else {})
    return form


# ---------------------------------------------------------------------------------------- names


def _usual_parameters() -> Schema:
    """Where all parameters have usual names, what names one does, too."""
    usual = _at("search_space", is_there=True, propertyNames={"enum": [*PARAMETERS]})
    name = {"anyOf": [{"type": "number"}, {"enum": [*PARAMETERS]}]}
    training = {
        "batch_size": name,
        "warmup": {"properties": {"initial": name, "rescale": name}},
    }
    conditions = _at("when", propertyNames={"enum": [*PARAMETERS]})
    space = {"additionalProperties": conditions}
    return _if(usual, {"properties": {"training": {"properties": training}, "search_space": space}})


def _named_numbers() -> Iterator[Schema]:
    """A parameter that a setting names is there, always, and gives numbers."""
    settings = (
        (("batch_size",), "Whole"),
        (("warmup", "initial"), "Number"),
        (("warmup", "rescale"), "Number"),
    )
    for way, kind in settings:
        for name in _NUMBERS:
            is_named = _at("training", *way, is_there=True, const=name)
            gives: Schema = {"$ref": f"#/$defs/{kind}Parameter"}
            space = _at(name, is_there=True, **gives)
            listed = _if(_at("kind", is_there=True, const="list"), _at("configs", items={"required": [name]}))
            yield _if(is_named, {"properties": {"search_space": space, "searcher": listed}})


def _gives(kind: str, least: int, ranges: tuple[str, ...]) -> Schema:
    """Return the form of a parameter that always gives numbers."""
    number: Schema = {"type": kind, "minimum": least}
    always = {"when": {"maxProperties": 0}}
    forms = [_at(key, is_there=True, items=[{"minimum": least}]) for key in ranges]
    forms += [_at("choice", is_there=True, items=number), _at("constant", is_there=True, **number)]
    return {"anyOf": [number, {"type": "object", "properties": always, "anyOf": forms}]}


def _usual_stages() -> Schema:
    """Where all stages have usual names, what a stage waits for does, too."""
    usual = _at("stages", is_there=True, propertyNames={"enum": [*STAGES]})
    waits = {
        "needs": {"additionalProperties": {"enum": [*STAGES]}},
        "for_each": {"additionalProperties": {"anyOf": [{"type": "array"}, {"enum": [*STAGES]}]}},
        "tune": _at("searcher", "warm_start", enum=[*STAGES, None]),
    }
    return _if(usual, _at("stages", additionalProperties={"properties": waits}))


def _warm_starts() -> Iterator[Schema]:
    """A search begins with another search's best, not with a stage that searches nothing."""
    for name in _NO_SEARCH:
        no_search: Schema = {"not": {"required": ["tune"]}}
        another: Schema = {"not": {"const": name}}
        is_there = _at("stages", name, is_there=True, **no_search)
        warm = _at("tune", "searcher", "warm_start", **another)
        yield _if(is_there, _at("stages", additionalProperties=warm))


def _given_once() -> Iterator[Schema]:
    """An argument is given by one of `needs`, `with` and `for_each`."""
    for name in _ARGUMENTS:
        for one, other in combinations(("needs", "with", "for_each"), 2):
            given = {key: {"type": "object", "required": [name]} for key in (one, other)}
            yield {"not": {"properties": given, "required": [one, other]}}


def _usual_placeholders() -> Schema:
    """Where all names are usual, a command has no other placeholder."""
    names = {*PARAMETERS, *STAGES, *_ARGUMENTS}
    usual: Schema = {"propertyNames": {"enum": sorted(names)}}
    given = _at("tune", "search_space", is_there=True, **usual)
    given["properties"] |= {"needs": usual, "with": usual, "for_each": usual}
    known = "|".join(sorted({*names, *TRAINING_PLACEHOLDERS}))
    form = r"(![a-z])?(:([^{}]|\{[^{}]*\})*)?"
    text: Schema = {"pattern": rf"^([^{{}}]|\{{\{{|\}}\}}|\{{({known}){form}\}})*$"}
    return _if(given, _at("tune", "training", "command", **text, items=text))


def _known_protocol() -> Schema:
    """A URL for checkpoints is of a kind that fsspec knows here; packages may register others elsewhere."""
    from fsspec.registry import available_protocols

    known = "|".join(sorted(name for name in available_protocols() if name.isidentifier()))
    return _at("checkpoints", pattern=f"^({known})://")


# ---------------------------------------------------------------------------------------- order


def _not_above(low: str, high: str) -> Iterator[Schema]:
    for step in _EPOCHS:
        is_below = _at(high, is_there=True, type="integer", maximum=step)
        yield _if(is_below, _at(low, maximum=step))


def _leaves_a_rung() -> Iterator[Schema]:
    """A ladder that may grow has more than two rungs, each with at least twice the epochs of the last."""
    for step in _EPOCHS[2:]:
        cap = _at("auto", is_there=True, type="integer", maximum=step)
        is_below = _at("max_t", is_there=True, type="object", **cap)
        yield _if(is_below, _at("grace_period", maximum=(step - 1) // 2))


def _low_first(key: str, steps: tuple[float, ...]) -> Iterator[Schema]:
    for step in steps:
        is_below = _at(key, is_there=True, items=[{}, {"type": "number", "maximum": step}], minItems=2)
        yield _if(is_below, _at(key, items=[{"maximum": step}]))
