"""What a study file declares: stages, what each needs, and how often it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal, TypeAlias, TypeGuard

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import MARK, Plain, listing, mapping_at, refused, shown, suggestion
from parsl_rasda.errors import Diagnostic, Loc
from parsl_rasda.study.commands import Command, unknown_placeholders
from parsl_rasda.study.files import FILE_FORM, NO_FILE_FORM, file_problems
from parsl_rasda.study.observers import NotifySpec, TrackerSpec
from parsl_rasda.study.parameters import searched_in
from parsl_rasda.study.spec import (
    IDENTIFIER_FORM,
    Arguments,
    Count,
    Identifier,
    Label,
    Seed,
    Spec,
    Target,
    exactly_one,
    mapping_form,
    variant,
)
from parsl_rasda.study.tuning import TuneSpec, command_problems

DIRECTORY = "directory"  # the argument that every stage may have: a folder of its own
SHORT_STAGE = "tune"  # the name of the only stage when a study is a single top-level `tune`
MOST_CALLS = 100_000  # of a stage
MOST_STAGES = 1_000
_VARIANTS = ("python", "command", "tune")
EACH = "each"  # in place of a site's name
_WARM_START: Loc = ("tune", "searcher", "warm_start")
_GIVERS = ("needs", "with", "for_each")  # keys of a stage that give it arguments


def _values_or_stage(value: object) -> object:
    if isinstance(value, list | tuple | str) and len(value) > 0:
        return value
    raise refused(value, "a list of values, or the name of a stage that returns a list")


_VALUES_OR_STAGE: JsonSchemaValue = {
    "anyOf": [{"type": "array", "minItems": 1}, {"type": "string", "minLength": 1}]
}
ForEach: TypeAlias = Annotated[
    tuple[JsonValue, ...] | str, BeforeValidator(_values_or_stage), WithJsonSchema(_VALUES_OR_STAGE)
]


class StageBase(Spec):
    """What every stage may say."""

    needs: Mapping[Identifier, str] = Field(
        default_factory=dict, description="Argument -> stage whose result it gets."
    )
    with_: Arguments = Field(
        default_factory=dict,
        alias="with",
        description="Argument -> constant. Of {file: URL} (file, http, https, ftp), Parsl stages the file, "
        "and a python or command stage gets its path.",
    )
    for_each: Mapping[Identifier, ForEach] = Field(
        default_factory=dict,
        description="Argument -> list of values, or stage that returns one: the stage runs once per value, "
        "and what needs it gets the list of results. Several arguments give every combination.",
    )
    site: str | None = Field(
        None,
        description="Site it runs on, where a study has several; each: on every one, and what needs it gets "
        "the result of its own site. Without it: where the checkpoint of a search lies that it needs, else "
        "the first one; a search uses every site that has all of its inputs. A path that one site has "
        "returned is on its disk only, which sites without Globus Compute share; numbers and strings are "
        "everywhere.",
        examples=["each"],
    )

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, without the argument that is ours, and with files as they may be."""
        names = {"propertyNames": {**IDENTIFIER_FORM, "not": {"const": DIRECTORY}}}
        given = {key: {**mapping_form(schema["properties"][key]), **names} for key in _GIVERS}
        given["with"]["additionalProperties"] = FILE_FORM
        return {**schema, "properties": {**schema["properties"], **given}}

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield more calls than any run should make."""
        lists = {k: len(v) for k, v in mapping_at(plain, "for_each").items() if isinstance(v, list | tuple)}
        if (calls := math.prod(lists.values())) > MOST_CALLS:
            yield Diagnostic(("for_each",), f"{shown(calls)} combinations", f"at most {MOST_CALLS}")

    @property
    def stages_before(self) -> tuple[str, ...]:
        """The stages whose results this one waits for, each once."""
        from_lists = (v for v in self.for_each.values() if isinstance(v, str))
        return tuple(dict.fromkeys([*self.needs.values(), *from_lists]))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments it is given."""
        return tuple(dict.fromkeys([*self.needs, *self.with_, *self.for_each]))


class ResourcesSpec(Spec):
    """How much of a site a stage may take: workers beside those of the trials, never their slots."""

    at_once: Count = Field(
        4, description="Calls of this stage that run at a time on a site; others wait for their turn."
    )


class CalledStage(StageBase):
    """What the stages may say whose calls become Parsl apps."""

    resources: ResourcesSpec = Field(
        default_factory=ResourcesSpec,
        description="What its calls may take of a site: at_once.",
        examples=[{"at_once": 8}],
    )


class PythonStage(CalledStage):
    """A function that becomes a Parsl app."""

    python: Target = Field(
        description="package.module:function. A parameter named `directory` gets a folder of its own."
    )


class CommandStage(CalledStage):
    """A program that becomes a Parsl app."""

    command: Command = Field(
        description="Words, or one string; {argument} is filled in, {directory} is a folder of its own.",
        examples=["python mesh.py --cells {cells} --out {directory}"],
    )


class TuneStage(StageBase):
    """A hyperparameter optimisation; the result is the best trial."""

    tune: TuneSpec = Field(description="What is optimised and how.")

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, without what a search cannot have."""
        schema = super().file_form(schema)
        fields = schema["properties"]
        fields["for_each"] |= {"maxProperties": 0}
        fields["site"] |= {"not": {"const": EACH}}
        fields["with"] |= {"additionalProperties": NO_FILE_FORM}
        return schema

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a search on each site: it is one search, over all of them."""
        yield from super().problems(plain)
        if plain.get("site") == EACH:
            yield Diagnostic(("site",), EACH, "the name of a site; without one, a search uses all of them")
        if plain.get("for_each"):
            allowed = "a search of its own for each: a `tune` stage, or a parameter of the search space"
            yield Diagnostic(("for_each",), shown(plain["for_each"]), allowed)

    @property
    def stages_before(self) -> tuple[str, ...]:
        """The stages whose results this one waits for, each once."""
        warm = self.tune.searcher.warm_start
        return tuple(dict.fromkeys([*super().stages_before, *([warm] if warm else [])]))


def _tag(value: object) -> str | None:
    return variant(value, _VARIANTS)


Stage: TypeAlias = PythonStage | CommandStage | TuneStage
_AnyStage = Annotated[
    Annotated[PythonStage, Tag(MARK + "python")]
    | Annotated[CommandStage, Tag(MARK + "command")]
    | Annotated[TuneStage, Tag(MARK + "tune")],
    Discriminator(_tag),
    BeforeValidator(exactly_one(*_VARIANTS)),
]


class StudySpec(Spec):
    """A study: stages that need one another, or a single `tune` at the top level."""

    name: Label = Field(description="Name of the study.")
    seed: Seed = Field(
        0, description="Seed of the searchers and of the training; a stage has the seeds that it is given."
    )
    code: Literal["live", "pinned"] = Field(
        "live",
        description="pinned: a run makes a copy of the study's modules when it begins, and runs that.",
    )
    track: tuple[TrackerSpec, ...] = Field(
        (),
        max_length=20,
        description="Tools where trials are shown while they train: tensorboard, {mlflow: URI}, "
        "{wandb: {project: ...}}; the controller writes to them.",
        examples=[["tensorboard", {"wandb": {"project": "mine"}}]],
    )
    notify: NotifySpec | None = Field(
        None,
        description="A command that is told of events.",
        examples=[{"command": "notify-send {study} {message}"}],
    )
    stages: Mapping[Identifier, _AnyStage] = Field(
        min_length=1,
        max_length=MOST_STAGES,
        description="stages (name -> a mapping with one of python, command, tune), or a single `tune`",
    )

    @classmethod
    def words(cls) -> tuple[str, ...]:
        """Return the keys of both forms."""
        return (*cls.keys(), *SHORT_KEYS)

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Write a single top-level `tune` out as the only stage."""
        if not is_short_form(data):
            return data
        stage = {k: v for k, v in data.items() if k in SHORT_KEYS}
        rest = {k: v for k, v in data.items() if k not in SHORT_KEYS}
        return {**rest, "stages": {SHORT_STAGE: stage}}

    @property
    def tune_stages(self) -> Mapping[str, TuneStage]:
        """The stages that optimise."""
        return {n: s for n, s in self.stages.items() if isinstance(s, TuneStage)}

    @property
    def stage_calls_at_once(self) -> int:
        """How many calls of stages may run at a time on a site: of the widest stage, or none."""
        called = (s for s in self.stages.values() if not isinstance(s, TuneStage))
        return max((stage.resources.at_once for stage in called), default=0)

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield stages that need what does not exist, or each other, and arguments given twice."""
        stages = mapping_at(plain, "stages")
        if len(stages) > MOST_STAGES:
            return
        if plain.get("code") == "pinned":
            for name, stage in stages.items():
                training = mapping_at(mapping_at(stage, "tune"), "training") if _is_search(stage) else {}
                if training.get("command") is not None:
                    allowed = f"live: what the training.command of {name} runs is not known"
                    yield Diagnostic(("code",), "pinned", allowed)
        for name, stage in stages.items():
            if isinstance(stage, Mapping):
                for problem in _stage_problems(name, stage, stages):
                    yield problem.below("stages", name)
        yield from _cycles(stages)


SHORT_KEYS = ("tune", "with", "site")


def is_short_form(data: object) -> bool:
    """Return whether a study is a single `tune` at the top level."""
    return isinstance(data, Mapping) and "tune" in data and "stages" not in data


def _is_search(stage: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(stage, Mapping) and "tune" in stage


def _stage_problems(name: str, stage: Plain, stages: Plain) -> Iterator[Diagnostic]:
    yield from _need_problems(name, stage, stages)
    given: dict[str, str] = {}
    for key in _GIVERS:
        for argument in mapping_at(stage, key):
            if argument in given:
                yield Diagnostic(
                    (key, argument), f"an argument that `{given[argument]}` gives too", "one of them"
                )
            given.setdefault(argument, key)
            if argument == DIRECTORY:
                yield Diagnostic(
                    (key, argument), "a name that is ours", "any other; each stage gets its own folder"
                )
    yield from file_problems(stage)
    for problem in unknown_placeholders(stage.get("command"), (*given, DIRECTORY)):
        yield problem.below("command")
    for problem in command_problems(mapping_at(stage, "tune"), given):
        yield problem.below("tune")


def _need_problems(name: str, stage: Plain, stages: Plain) -> Iterator[Diagnostic]:
    others = [n for n in stages if n != name]
    for loc, needed in _wanted(stage):
        if needed not in stages:
            yield Diagnostic(loc, f"{shown(needed)}, no stage", _one_of(others, needed))
        elif loc == _WARM_START and "tune" not in stages[needed]:
            allowed = _one_of([n for n in others if "tune" in stages[n]], needed)
            yield Diagnostic(loc, f"{shown(needed)}, which searches nothing", allowed)
        elif loc == _WARM_START:
            yield from _nothing_shared(name, stage, needed, stages[needed])


def _nothing_shared(name: str, stage: Plain, other_name: str, other: Plain) -> Iterator[Diagnostic]:
    """Yield a warm start from a search whose best configuration says nothing that is searched here."""
    space, known = (mapping_at(s, "tune", "search_space") for s in (stage, other))
    searched = searched_in(space)
    if space and known and not set(searched) & set(known):
        found = f"{shown(other_name)}, which knows nothing that {name} searches: {listing(known)}"
        yield Diagnostic(_WARM_START, found, f"a search with one of the parameters {listing(searched)}")


def _one_of(names: list[str], word: str) -> str:
    return f"a stage of this study: {listing(names)}{suggestion(word, names)}"


def _wanted(stage: object) -> Iterator[tuple[Loc, str]]:
    """Yield (place, stage) for everything a stage waits for."""
    for key in ("needs", "for_each"):
        for argument, needed in mapping_at(stage, key).items():
            if isinstance(needed, str):
                yield (key, argument), needed
    warm = mapping_at(stage, "tune", "searcher").get("warm_start")
    if isinstance(warm, str):
        yield _WARM_START, warm


def _cycles(stages: Plain) -> Iterator[Diagnostic]:
    graph = {n: [needed for _, needed in _wanted(s) if needed in stages] for n, s in stages.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        yield Diagnostic(
            ("stages", circle[0], *_way(stages[circle[0]], circle[1])),
            f"a circle: {' needs '.join(circle)}",
            "stages that wait for earlier ones only",
        )


def _way(stage: object, needed: str) -> Loc:
    return next(loc for loc, n in _wanted(stage) if n == needed)
