"""The `scheduler` block: who trains on, how long, and on how many replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, is_number, listing, refused, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.plugins import EARLY_RULES, GROWTH_POLICIES, SCHEDULERS, Choice
from parsl_rasda.study.epochs import MaxT, auto_problems, cap_of
from parsl_rasda.study.spec import (
    MOST,
    Count,
    Natural,
    PluginSpec,
    chosen_from,
    or_null,
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
