"""What a `tune` stage declares: the method, the searcher, the search space and the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, is_number, listing, mapping_at, refused, shown, suggestion
from parsl_rasda.errors import Diagnostic, InvalidSettingError
from parsl_rasda.plugins import EARLY_RULES, GROWTH_POLICIES, SCHEDULERS, SEARCHERS, Choice, kind_of
from parsl_rasda.protocol import Training
from parsl_rasda.study.batch_sizes import FixedReplicas, indivisible_sizes, unmeasured
from parsl_rasda.study.budgets import BudgetSpec
from parsl_rasda.study.commands import Command, unknown_placeholders
from parsl_rasda.study.confirming import ConfirmSpec, confirm_problems
from parsl_rasda.study.epochs import MaxT, auto_problems, cap_of
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
from parsl_rasda.study.spec import (
    IDENTIFIER,
    IDENTIFIER_FORM,
    MOST,
    Count,
    Flag,
    Identifier,
    Natural,
    Number,
    PluginSpec,
    Seconds,
    Spec,
    Target,
    chosen_from,
    matching,
    or_null,
)
from parsl_rasda.types import JSON, JudgedBy, Keep, Mode

MOST_METRICS = 8
TRAINING_PLACEHOLDERS = (
    "until",
    "max_t",
    "epoch",
    "checkpoint",
    "report",
    "out",
    "replicas",
    "world_size",
    "batch_size",
    "global_batch_size",
    "seed",
)


SchedulerVariant: TypeAlias = Literal["stopping", "promotion", "synchronous"]


def _zero(value: object) -> object:
    return 0 if value is None else value


_AUTO_BRACKETS = (
    3  # at most: with a fourth, `auto` lost more by trying it than it gained (benchmarks/brackets.py)
)


def _count_or_auto(value: object) -> object:
    if value == "auto" or (is_number(value) and isinstance(value, int) and 1 <= value <= MOST):
        return value
    raise refused(value, f"a whole number from 1 to {MOST}, or auto")


_COUNT_OR_AUTO = WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST}, {"const": "auto"}]}
)


def _milestones(milestone: int, max_t: int, reduction_factor: int) -> tuple[int, ...]:
    milestones = []
    while milestone < max_t:
        milestones.append(milestone)
        milestone *= reduction_factor
    return (*milestones, max_t)


class SchedulerSpec(PluginSpec):
    """Who trains on, how long, and on how many replicas. Keys that are not ours are options of a plug-in."""

    group = SCHEDULERS

    kind: str = Field("rasda", description="rasda, asha (nothing grows), or a plug-in.")
    variant: SchedulerVariant = Field(
        "stopping",
        description="stopping: judged against earlier results, at once; promotion: paused until among the "
        "best (ASHA 2018); synchronous: waits for the whole rung, decides the same in any order.",
    )
    grace_period: Count = Field(1, description="Epochs every trial trains before it is first judged.")
    max_t: MaxT = Field(
        description="Epochs of a trial that is never stopped. {auto: N}: at most N, and no more than it "
        "takes for the rankings at the last two rungs to be the same (PASHA); the second is tried first.",
    )
    reduction_factor: Annotated[Count, Field(ge=2)] = Field(
        2, description="One trial in this many passes a rung; also the ratio of epochs between rungs."
    )
    min_compared: Count = Field(
        1,
        description="Results that a rung needs before anyone is judged there, unless `variant: synchronous`. "
        "Who comes before waits, paused, until so many are there or nobody can come any more; then the best "
        "1/reduction_factor of them go on. 1: the first goes on at once, as in the paper.",
        examples=[8],
    )
    early: Annotated[Choice, chosen_from(EARLY_RULES)] = Field(
        "none",
        description="Between rungs, curve stops a trial whose learning curve leaves no chance of being among "
        "the best at the next rung, or better than the best at max_t; or a plug-in, with options as "
        "{kind: NAME, option: value}.",
        examples=[{"kind": "curve", "quantile": 0.9}],
    )
    scaling_factor: Count = Field(
        2, description="GPUs, and replicas if the batch grows, multiply by this at each rung; 1: never."
    )
    brackets: Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto), _COUNT_OR_AUTO] = Field(
        1,
        description="Hyperband's: how many ladders there are, of which each first judges its trials a rung "
        "later than the one before; auto: up to three, and later trials go to the one that pays.",
    )
    num_workers: Count = Field(1, description="GPUs of a new trial.")
    max_workers: Count | None = Field(None, description="Most GPUs of a trial; without it, no limit.")
    batch: Literal["doubling", "constant", "measured"] = Field(
        "doubling",
        description="doubling: each replica has batch_size samples of a step, so that the batch grows with "
        "the GPUs; constant: batch_size samples in all, which max_workers replicas share from the start, so "
        "that only the GPUs grow; measured: shared likewise, from num_workers * batch_size samples on, and "
        "grows as with doubling, but not beyond the noise scale of a trial's gradients.",
    )
    min_steps_per_epoch: Annotated[
        Natural, BeforeValidator(_zero), or_null({"type": "integer", "minimum": 0, "maximum": MOST})
    ] = Field(
        50,
        description="Unless `batch: constant`: the batch grows no further where an epoch would have fewer "
        "steps; the GPUs do. 0 or null: no limit.",
    )
    growth: Annotated[Choice, chosen_from(GROWTH_POLICIES)] = Field(
        "elastic",
        description="elastic: into idle GPUs only, nobody waits; strict: waits for the full width, as in "
        "the paper; none: the width of the start; or a plug-in, with options as {kind: NAME, option: value}.",
    )

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs at which trials are judged, ascending; the last one is `max_t`."""
        return _milestones(self.grace_period, int(self.max_t), self.reduction_factor)

    @property
    def grace_periods(self) -> tuple[int, ...]:
        """Epochs before a trial is first judged, by bracket."""
        milestones = self.milestones
        if self.brackets == "auto":
            return milestones[: max(1, min(_AUTO_BRACKETS, len(milestones) - 1))]
        return milestones[: self.brackets]

    @property
    def most_workers(self) -> int:
        """GPUs that the method gives at the last rung."""
        grown: int = self.num_workers * self.scaling_factor ** (len(self.milestones) - 1)
        return grown if self.max_workers is None else min(self.max_workers, grown)

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, with the widths that a trial reaches from 1, 2, 4 or 8 GPUs."""
        forms = []
        for factor, number in ((1, 1), (2, 1), (2, 2), (2, 4), (2, 8)):
            start = {"scaling_factor": factor, "num_workers": number}
            given = [key for key, value in start.items() if cls.model_fields[key].default != value]
            widths = [*_powers(number, factor, MOST), None]
            reached = {"properties": {"max_workers": {"enum": widths}}}
            holds = {"properties": {key: {"const": n} for key, n in start.items()}, "required": given}
            forms.append({"if": holds, "then": reached})
        waits = {"properties": {"variant": {"enum": ["synchronous"]}}, "required": ["variant"]}
        alone = {"min_compared": {"const": 1}, "max_t": {"type": "integer"}, "early": {"enum": ["none"]}}
        forms.append({"if": waits, "then": {"properties": alone}})
        return {**super().file_form(schema), "allOf": forms}

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield what is wrong with a plug-in, and limits that lie below what they limit."""
        yield from super().problems(plain)
        for low, high in (("grace_period", "max_t"), ("num_workers", "max_workers")):
            least, most = plain.get(low, 1), cap_of(plain.get(high))
            if isinstance(least, int) and isinstance(most, int) and least > most > 0:
                yield Diagnostic((low,), f"{least}, which is more than {high}", f"1 to {most} ({high})")
        yield from auto_problems(plain)
        waiting, early = plain.get("min_compared", 1), plain.get("early", "none")
        if plain.get("variant") == "synchronous" and waiting != 1:
            found = f"{shown(waiting)}, with variant: synchronous, where all wait for each other"
            yield Diagnostic(("min_compared",), found, "1, or another variant")
        if plain.get("variant") == "synchronous" and early not in ("none", {"kind": "none"}):
            found = f"{shown(early)}, with variant: synchronous, where the order of reports decides nothing"
            yield Diagnostic(("early",), found, "none, or another variant")
        yield from _bracket_problems(plain)
        start, step, most = (
            plain.get(k, d) for k, d in (("num_workers", 1), ("scaling_factor", 2), ("max_workers", 1))
        )
        if all(isinstance(n, int) and n >= 1 for n in (start, step, most)) and most > start:
            steps = list(_powers(start, step, most))
            if steps[-1] != most:
                # A trial keeps its width while its replicas grow: the one must divide the other.
                found = f"{most}, which num_workers does not reach by scaling_factor"
                more = f", {steps[-1] * step}, ..." if step > 1 else ""
                yield Diagnostic(("max_workers",), found, listing(map(str, steps)) + more)


def _bracket_problems(plain: Plain) -> Iterator[Diagnostic]:
    """Yield brackets that no rung is left for, or that a plug-in would not know of."""
    brackets, kind = plain.get("brackets", 1), plain.get("kind", "rasda")
    if brackets == 1:
        return
    if kind not in ("rasda", "asha"):
        yield Diagnostic(
            ("brackets",), f"{shown(brackets)}, with kind: {shown(kind)}", "1, or kind: rasda, asha"
        )
        return
    grace, max_t, factor = (
        plain.get("grace_period", 1),
        plain.get("max_t", 0),
        plain.get("reduction_factor", 2),
    )
    for key, alone in (("max_t", None), ("min_compared", 1), ("early", "none")):
        value = plain.get(key, alone)
        is_plain = not isinstance(value, Mapping) if alone is None else value in (alone, {"kind": alone})
        if not is_plain:
            yield Diagnostic(
                ("brackets",), f"{shown(brackets)}, with {key}: {shown(value)}", f"1, or a plain {key}"
            )
    numbers = brackets, grace, max_t, factor
    if all(isinstance(n, int) and n >= 1 for n in numbers) and factor > 1:
        most = len(_milestones(grace, max_t, factor))
        if brackets > most:
            found = f"{brackets}, which is more than there are rungs"
            yield Diagnostic(("brackets",), found, f"1 to {most} (rungs up to max_t), or auto")


def _powers(start: int, step: int, most: int) -> Iterator[int]:
    while start <= most:
        yield start
        if step == 1:
            return
        start *= step


class SearcherSpec(PluginSpec):
    """Which configurations are tried. Keys that are not ours are options of the searcher."""

    group = SEARCHERS

    kind: str = Field(
        "random", description="random, grid, sobol, tpe, gp, cmaes (Optuna's), list, or a plug-in."
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


def _count_or_name(value: object) -> object:
    count = is_number(value) and isinstance(value, int) and 1 <= value <= MOST
    if count or (isinstance(value, str) and IDENTIFIER.fullmatch(value)):
        return value
    raise refused(value, f"a whole number from 1 to {MOST}, or the name of a search-space parameter")


def _epochs_or_name(value: object) -> object:
    number = is_number(value) and 0 <= value <= MOST
    if number or (isinstance(value, str) and IDENTIFIER.fullmatch(value)):
        return value
    raise refused(value, f"a number of epochs from 0 to {MOST}, or the name of a search-space parameter")


def _or_name(kind: str, least: int) -> WithJsonSchema:
    number = {"type": kind, "minimum": least, "maximum": MOST}
    return WithJsonSchema({"anyOf": [number, {**IDENTIFIER_FORM, "title": "a parameter"}]})


CountOrName = Annotated[int | str, BeforeValidator(_count_or_name), _or_name("integer", 1)]
EpochsOrName = Annotated[float | str, BeforeValidator(_epochs_or_name), _or_name("number", 0)]


class WarmupSpec(Spec):
    """Epochs in which the learning rate rises: a number, or the name of a searched parameter."""

    initial: EpochsOrName = Field(0.0, description="Epochs from 0 to the full rate, at the start.")
    rescale: EpochsOrName = Field(0.0, description="Epochs from the old rate to the new one, after a resize.")


def _off(value: object) -> object:
    return "none" if value is None else value


class KeepSpec(Spec):
    """Whose checkpoints stay, and which of theirs: a word, or a mapping."""

    whose: Keep = Field(Keep.BEST, description="best; survivors: also of those that reached max_t; all.")
    best: Count = Field(1, description="How many of the best trials keep theirs.")
    rungs: Flag = Field(False, description="Whether they keep those of all rungs, not only the last two.")

    @classmethod
    def normalised(cls, data: Any) -> Any:
        """Return a word as a mapping."""
        return {"whose": data} if isinstance(data, str) else data

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, or a word."""
        return {"anyOf": [schema["properties"]["whose"], schema]}


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


LearningRateScaling: TypeAlias = Literal["auto", "linear", "sqrt", "none"]
_SCALINGS = [*get_args(LearningRateScaling)]


class TrainingSpec(Spec):
    """How every trial trains: a Python function that takes a `Trial`, or a command."""

    python: Target | None = Field(None, description="Training function, package.module:function.")
    command: Command | None = Field(
        None,
        description="A script that cannot be changed; {until} {max_t} {epoch} {checkpoint} {report} "
        "{out} {replicas} {world_size} {batch_size} (of a replica) {global_batch_size} (of a step) {seed}, "
        "the searched parameters and the stage's arguments are filled in.",
        examples=["python train.py --lr {lr} --epochs {until} --resume {checkpoint} --out {report}"],
    )
    batch_size: CountOrName = Field(
        32,
        description="Samples per replica and step (`scheduler.batch: constant`: per step; measured: per step "
        "and GPU of a new trial), at most: if the last step would not be full, all are a little smaller; may "
        "be searched.",
    )
    lr_scaling: Annotated[LearningRateScaling, BeforeValidator(_off), or_null({"enum": _SCALINGS})] = Field(
        "auto",
        description="How the rate follows the batch; auto: linear for SGD, square root for Adam's family.",
    )
    warmup: WarmupSpec = Field(default_factory=WarmupSpec, description="Epochs of rising rate.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the forward pass.")
    reduce: Literal["auto", "exact", "ddp"] = Field(
        "auto",
        description="exact: gradients added in one fixed order, the same bits at any world size of the same "
        "hardware, libraries and threads (on GPUs, kernels that add in no fixed order are refused, with auto "
        "warned of); ddp: PyTorch's own, where replicas that share a batch may be computed together; auto: "
        "exact where replicas and world size are powers of two.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="fsdp: each rank holds a part of the model and its optimizer, for models larger than one "
        "GPU; gradients are then added as by ddp.",
    )
    clip_norm: Number | None = Field(None, gt=0, description="Largest norm of the gradient.")
    checkpoint_every: Count = Field(1, description="Epochs between checkpoints; rungs always have one.")
    keep_checkpoints: KeepSpec = Field(
        default_factory=KeepSpec,
        description="Whose checkpoints stay when trials have ended: best; survivors: also of those that "
        "reached max_t; all; or {best: N}, of the N best; {rungs: true}: those of each rung, too. Whoever "
        "may still go on keeps the last two.",
        examples=[{"best": 3}],
    )
    compile: Flag = Field(False, description="Whether the model goes through torch.compile.")
    stall_after: Seconds = Field(
        12.0,
        description="No step for so long [s], and for ten epochs as they are: the ranks have stalled, their "
        "stacks go to the attempt's log, and the trial is tried again.",
    )

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, one of which starts a training."""
        sharded = {"properties": {"sharding": {"const": "fsdp"}}, "required": ["sharding"]}
        wrong = {"reduce": "exact", "precision": "fp16", "compile": True}
        return {
            **schema,
            "oneOf": [{"required": ["python"]}, {"required": ["command"]}],
            "if": sharded,
            "then": {"properties": {key: {"not": {"const": value}} for key, value in wrong.items()}},
        }

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a training without a way to start it, or with two."""
        ways = [k for k in ("python", "command") if plain.get(k) is not None]
        if len(ways) != 1:
            yield Diagnostic(
                (), "python and command" if ways else "neither", "exactly one of python, command"
            )
        if plain.get("sharding") == "fsdp":
            for key, wrong in (("reduce", "exact"), ("precision", "fp16"), ("compile", True)):
                if plain.get(key) == wrong:
                    yield Diagnostic((key,), f"{shown(wrong)}, with sharding: fsdp", "another value")

    def resolve(self, config: Mapping[str, JSON]) -> Training:
        """Return the settings of one trial, with the values that its configuration gives.

        Raises:
            InvalidSettingError: If a parameter that a setting names is missing or of no use there.
        """
        return Training(
            batch_size=int(_value(self.batch_size, config, "batch_size", least=1)),
            lr_scaling=self.lr_scaling,
            warmup_initial=_value(self.warmup.initial, config, "warmup.initial", least=0),
            warmup_rescale=_value(self.warmup.rescale, config, "warmup.rescale", least=0),
            precision=self.precision,
            reduce=self.reduce,
            sharding=self.sharding,
            clip_norm=self.clip_norm,
            checkpoint_every=self.checkpoint_every,
            compile=self.compile,
            stall_after_s=self.stall_after,
        )


def _value(setting: float | str, config: Mapping[str, JSON], key: str, *, least: int) -> float:
    value = config.get(setting) if isinstance(setting, str) else setting
    if not is_number(value) or value < least:
        raise InvalidSettingError(f"training.{key} of trial", value, f"a number of at least {least}")
    return float(value)


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
