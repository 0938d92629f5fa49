"""What a `tune` stage declares: metrics, searcher, search space and budget; other blocks are beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, ValidationError, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, is_number, listing, mapping_at, refused, shown, suggestion
from parsl_rasda.errors import Diagnostic
from parsl_rasda.plugins import SEARCHERS, kind_of
from parsl_rasda.study.batch_sizes import FixedReplicas, indivisible_sizes, unmeasured
from parsl_rasda.study.budgets import BudgetSpec
from parsl_rasda.study.commands import unknown_placeholders
from parsl_rasda.study.confirming import ConfirmSpec, confirm_problems
from parsl_rasda.study.estimates import EstimateSpec
from parsl_rasda.study.metrics import ConstraintSpec, MetricSpec, first_as_metric, metric_problems
from parsl_rasda.study.parameters import (
    MOST_CHOICES,
    MOST_PARAMETERS,
    SearchSpaceForm,
    first_problems,
    space_problems,
    with_prior,
)
from parsl_rasda.study.scheduler import SchedulerSpec
from parsl_rasda.study.spec import (
    IDENTIFIER,
    Count,
    Identifier,
    Natural,
    Number,
    PluginSpec,
    Spec,
    matching,
)
from parsl_rasda.study.training import TRAINING_PLACEHOLDERS, TrainingSpec
from parsl_rasda.types import JudgedBy, Mode

MOST_METRICS = 8


class SearcherSpec(PluginSpec):
    """Which configurations are tried. Keys that are not ours are options of the searcher."""

    group = SEARCHERS

    kind: str = Field(
        "random", description="random, grid, sobol, tpe, gp, cmaes, nsgaii (Optuna's), list, or a plug-in."
    )
    warm_start: str | None = Field(
        None,
        description="Another `tune` stage, whose best configuration is tried first; it knows a value of at "
        "least one parameter that is searched here.",
        examples=["coarse"],
    )
    first: tuple[Annotated[Mapping[Identifier, JsonValue], Field(min_length=1)], ...] = Field(
        (),
        max_length=MOST_CHOICES,
        description="Configurations that are tried first, in this order. What one does not say is set to the "
        "parameter's prior, else to the middle of its range.",
        examples=[[{"lr": 1e-3}]],
    )
    learn_from: tuple[str, ...] = Field(
        (),
        max_length=MOST_CHOICES,
        description="Earlier studies; the best three configurations of each are tried first, after those of "
        "`first`: run directories, their results.csv, storages of Optuna's (a file or URL).",
        examples=[["runs/coarse", "sqlite:///shared.db"]],
    )


class StopSpec(Spec):
    """When a search has found enough: no further trial starts, and all that run are stopped."""

    no_improvement: Count | None = Field(
        None, description="Trials that ended since the best metric of all was reported.", examples=[20]
    )
    metric_below: Number | None = Field(
        None, description="With mode: min, a metric that is good enough.", examples=[0.01]
    )
    metric_above: Number | None = Field(
        None, description="With mode: max, a metric that is good enough.", examples=[0.99]
    )


def _url(value: str) -> str:
    scheme, found, rest = value.partition("://")
    if not found or not rest or not scheme:
        hint = f", for example file://{value}" if value.startswith("/") else ""
        raise refused(value, f"a URL that every site reaches, such as s3://bucket/folder{hint}")
    from fsspec.registry import available_protocols  # a tenth of a second, for those who need it

    known = [name for name in available_protocols() if name.isidentifier()]
    if scheme not in known:
        raise refused(value, f"a URL of a kind that fsspec knows{suggestion(scheme, known)}")
    if scheme in {"file", "local"} and not rest.startswith("/"):
        raise refused(value, f"an absolute path, as in {scheme}:///scratch/shared")
    return value


_URL = WithJsonSchema(
    matching(r"(file|local):///.+|(?!file:|local:)[A-Za-z][^:/]*://.+", "a URL that every site reaches")
)


class TuneSpec(Spec):
    """A hyperparameter optimisation by RASDA."""

    metric: Identifier = Field(description="The name that training reports and trials are judged by.")
    mode: Mode = Field(Mode.MIN, description="min or max: whether a smaller or a larger metric is better.")
    metrics: Annotated[tuple[MetricSpec, ...], Field(min_length=2, max_length=MOST_METRICS)] | None = Field(
        None,
        description="Instead of metric and mode: several, by which trials are judged together, by fronts. "
        "The first one stands for all where one must: the best trial, stop_when, charts.",
        examples=[[{"name": "val_loss"}, {"name": "latency"}]],
    )
    constraints: Annotated[tuple[ConstraintSpec, ...], Field(max_length=MOST_METRICS)] = Field(
        (),
        description="Limits of metrics that training reports; who breaks one ranks behind all who do not.",
        examples=[[{"metric": "latency", "at_most": 0.01}]],
    )
    num_samples: Count = Field(description="Trials in all.")
    scheduler: SchedulerSpec = Field(description="Who trains on, how long, on how many replicas.")
    searcher: SearcherSpec = Field(
        default_factory=SearcherSpec,
        description="Which configurations are tried.",
        examples=[{"kind": "tpe"}],
    )
    search_space: SearchSpaceForm = Field(
        min_length=1,
        max_length=MOST_PARAMETERS,
        description="Parameter -> {float|int: [low, high]}, {choice: [...]} or a constant.",
        examples=[{"lr": {"float": [1e-4, 1e-1], "log": True}, "depth": 3}],
    )
    training: TrainingSpec = Field(description="How every trial trains.")
    checkpoints: Annotated[str, AfterValidator(_url), _URL] | None = Field(
        None,
        description="URL of a folder that every site reaches, as fsspec knows it: s3://..., file:///... . "
        "Checkpoints are copied there, so that a trial may go on at another site when its own is lost or "
        "full. Without it a trial stays with its checkpoint.",
        examples=["s3://bucket/checkpoints"],
    )
    best: JudgedBy = Field(
        JudgedBy.LAST,
        description="Which epoch is returned as the best, with its checkpoint: last, the method's, of the "
        "trial that ends best; or epoch, the best one of all trials. Rungs are judged as ever.",
    )
    stop_when: StopSpec = Field(
        default_factory=StopSpec,
        description="When to stop before all trials have been: {no_improvement: N}, {metric_below: x}.",
        examples=[{"no_improvement": 20}],
    )
    budget: BudgetSpec = Field(
        default_factory=BudgetSpec,
        description="What the search may spend: {wall_time, until, gpu_hours, node_hours}. It starts only "
        "what can still reach a rung, and ends with the best so far.",
        examples=[{"gpu_hours": 200, "until": "08:00"}],
    )
    confirm: ConfirmSpec | None = Field(
        None,
        description="Whether the best trials are trained again with new seeds when the search is decided: "
        "{top, seeds}. The one with the best mean is returned, with its checkpoint of the search.",
        examples=[{"top": 3, "seeds": 5}],
    )
    test_metric: Identifier | None = Field(
        None,
        description="A metric that training reports, by which nothing is decided: looked at once, of the "
        "winner and the runs that confirm it, when the search is over.",
        examples=["test_loss"],
    )
    max_retries: Natural = Field(2, description="Lost attempts after which a trial has failed.")
    estimates: EstimateSpec = Field(default_factory=EstimateSpec, description="What `plan` assumes.")

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Return several metrics with the first as the one that stands for all."""
        return first_as_metric(data)

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, with one metric or several."""
        return {
            **schema,
            "required": [key for key in schema["required"] if key != "metric"],
            "if": {"properties": {"metrics": {"type": "array"}}, "required": ["metrics"]},
            "then": {"properties": {"metric": False, "mode": False, "best": {"not": {"const": "epoch"}}}},
            "else": {"required": ["metric"]},
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """What is allowed and hardly meant, a sentence each."""
        said = " ".join(self.training.command or ())
        widens = kind_of(self.scheduler.growth) == "elastic"
        if not said or not widens or "{replicas" in said or "{world_size" in said:
            return ()
        return (
            "`training.command` uses neither {replicas} nor {world_size}: under `growth: elastic` its "
            "batch, and so its result, depends on how many GPUs happen to be idle. Accumulate "
            "{replicas} / {world_size} batches a step, or declare `growth: strict`.",
        )

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield names of parameters that do not exist, or that cannot serve."""
        yield from metric_problems(plain)
        yield from confirm_problems(plain)
        space = mapping_at(plain, "search_space")
        training = mapping_at(plain, "training")
        for problem in space_problems(space):
            yield problem.below("search_space")
        searcher = mapping_at(plain, "searcher")
        for problem in first_problems(searcher.get("first"), space):
            yield problem.below("searcher", "first")
        fixed = searcher.get("kind")
        for name in with_prior(space) if fixed in ("grid", "list") else ():
            allowed = "no prior, or a searcher that draws: grid and list try what is written down"
            yield Diagnostic(("search_space", name, "prior"), f"a prior, with kind: {fixed}", allowed)
        listed = searcher.get("configs") if searcher.get("kind") == "list" else None
        warmup = mapping_at(training, "warmup")
        for loc, setting in (
            (("batch_size",), training.get("batch_size")),
            (("warmup", "initial"), warmup.get("initial")),
            (("warmup", "rescale"), warmup.get("rescale")),
        ):
            if isinstance(setting, str) and IDENTIFIER.fullmatch(setting):
                whole = loc == ("batch_size",)
                yield from _reference(("training", *loc), setting, space, whole=whole)
                yield from _listed_without(listed, setting, ".".join(loc), whole=whole)
        wrong = "metric_below" if plain.get("mode") == Mode.MAX else "metric_above"
        if mapping_at(plain, "stop_when").get(wrong) is not None:
            right = "metric_above" if plain.get("mode") == Mode.MAX else "metric_below"
            found = f"{wrong}, with mode: {plain.get('mode', Mode.MIN.value)}"
            yield Diagnostic(("stop_when", wrong), found, right)
        replicas = _fixed_replicas(mapping_at(plain, "scheduler"))
        if replicas is not None:
            yield from unmeasured(training, replicas)
            yield from indivisible_sizes(training.get("batch_size", 32), space, listed, replicas)


def _fixed_replicas(scheduler: Plain) -> FixedReplicas | None:
    """Return the replicas that share each step, or None if they grow or the block is wrong."""
    if scheduler.get("batch") not in ("constant", "measured"):  # a tuple: it may be a list, which has no hash
        return None
    try:
        method = SchedulerSpec.model_validate(scheduler)
    except ValidationError:
        return None  # its mistakes are told
    start = method.num_workers if method.batch == "measured" else 1
    return FixedReplicas(method.most_workers, method.batch, start)


def command_problems(tune: Plain, arguments: Iterable[str]) -> Iterator[Diagnostic]:
    """Yield the placeholders of a training command that nothing fills in."""
    known = (*TRAINING_PLACEHOLDERS, *mapping_at(tune, "search_space"), *arguments)
    for problem in unknown_placeholders(mapping_at(tune, "training").get("command"), known):
        yield problem.below("training", "command")


def _reference(loc: tuple[str, ...], name: str, space: Plain, *, whole: bool) -> Iterator[Diagnostic]:
    kind = _kind_of_numbers(whole=whole)
    usable = [n for n, p in space.items() if _gives_numbers(p, whole=whole)]
    if name not in space:
        allowed = f"a number, or a parameter of the search space that gives {kind}: {listing(usable)}"
        yield Diagnostic(
            loc, f"{shown(name)}, no parameter of the search space", allowed + suggestion(name, space)
        )
    elif name not in usable:
        parameter = shown(space[name])
        yield Diagnostic(loc, f"{shown(name)}, which is {parameter}", f"a parameter that always gives {kind}")


def _listed_without(configs: object, name: str, setting: str, *, whole: bool) -> Iterator[Diagnostic]:
    """Yield the configurations of a list from which no trial could be trained."""
    for number, config in enumerate(configs if isinstance(configs, list | tuple) else ()):
        if isinstance(config, Mapping) and not _gives_numbers(config.get(name), whole=whole):
            allowed = f"one that gives training.{setting}, which is {name}: {_kind_of_numbers(whole=whole)}"
            yield Diagnostic(("searcher", "configs", number), shown(config), allowed)


def _kind_of_numbers(*, whole: bool) -> str:
    return "whole numbers of at least 1" if whole else "numbers of at least 0"


def _gives_numbers(parameter: object, *, whole: bool) -> bool:
    if isinstance(parameter, Mapping):
        if parameter.get("when"):
            return False
        if "constant" in parameter:
            return _gives_numbers(parameter["constant"], whole=whole)
        if "choice" in parameter:
            values = parameter["choice"]
            return isinstance(values, list | tuple) and all(_gives_numbers(v, whole=whole) for v in values)
        bounds = parameter.get("int", parameter.get("float"))
        low = bounds[0] if isinstance(bounds, list | tuple) and bounds else None
        is_enough = not is_number(low) or low >= whole  # bounds that are wrong are named elsewhere
        return is_enough and ("int" in parameter or not whole)
    return is_number(parameter) and (isinstance(parameter, int) or not whole) and parameter >= whole
