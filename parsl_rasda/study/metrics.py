"""Several metrics that trials are judged by, and limits that they must keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, mapping_at, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import Identifier, Number, Spec
from parsl_rasda.types import Mode


class MetricSpec(Spec):
    """One of several metrics."""

    name: Identifier = Field(description="The name that training reports.", examples=["val_loss"])
    mode: Mode = Field(Mode.MIN, description="min or max: whether a smaller or a larger value is better.")


class ConstraintSpec(Spec):
    """A limit that a trial must keep: exactly one of at_most, at_least."""

    metric: Identifier = Field(description="The name that training reports.", examples=["latency"])
    at_most: Number | None = Field(None, description="The largest value that is allowed.", examples=[0.01])
    at_least: Number | None = Field(None, description="The smallest value that is allowed.", examples=[0.9])

    @classmethod
    def file_form(cls, schema: JsonSchemaValue) -> JsonSchemaValue:
        """Return the fields, one of which is the limit."""
        number = {"type": "number"}
        ways = [{"properties": {key: number}, "required": [key]} for key in ("at_most", "at_least")]
        return {**schema, "oneOf": ways}

    @classmethod
    def problems(cls, plain: Plain) -> Iterator[Diagnostic]:
        """Yield a constraint without a limit, or with two."""
        if sum(plain.get(key) is not None for key in ("at_most", "at_least")) != 1:
            found = "at_most and at_least" if plain.get("at_most") is not None else "neither"
            yield Diagnostic((), found, "exactly one of at_most, at_least")


def first_as_metric(data: Any) -> Any:  # a `tune` block
    """Return a block with several metrics with the first one as the metric that stands for all."""
    listed = data.get("metrics") if isinstance(data, Mapping) else None
    first = listed[0] if isinstance(listed, list | tuple) and listed else None
    if isinstance(first, MetricSpec):
        first = {"name": first.name, "mode": first.mode.value}
    if not isinstance(first, Mapping) or not isinstance(first.get("name"), str):
        return data
    return {"metric": first["name"], "mode": first.get("mode", Mode.MIN.value), **data}


def metric_problems(plain: Plain) -> Iterator[Diagnostic]:
    """Yield both forms at once, a metric twice, and what cannot serve several metrics."""
    listed = plain.get("metrics")
    if listed or plain.get("constraints"):
        yield from _not_by_fronts(plain)
    if not isinstance(listed, list | tuple):
        return
    metrics = [one if isinstance(one, Mapping) else {} for one in listed]
    first = metrics[0] if metrics else {}
    for key, own in (("metric", first.get("name")), ("mode", first.get("mode", Mode.MIN.value))):
        if own is not None and plain.get(key, own) != own:
            yield Diagnostic((key,), "metrics as well", f"either metric and mode, or metrics (not {key})")
    names = [one.get("name") for one in metrics]
    for number, name in enumerate(names):
        if isinstance(name, str) and name in names[:number]:
            yield Diagnostic(("metrics", number, "name"), f"{name}, which is listed before", "another metric")


def _not_by_fronts(plain: Plain) -> Iterator[Diagnostic]:
    """Yield what compares trials by one number only."""
    what = "with several metrics" if plain.get("metrics") else "with constraints"
    if mapping_at(plain, "searcher").get("kind") == "cmaes":
        yield Diagnostic(("searcher", "kind"), f"cmaes, {what}", "random, sobol, grid, list, tpe, gp, nsgaii")
    if plain.get("best") == "epoch":
        yield Diagnostic(("best",), f"epoch, {what}", "last: an epoch that is best in all is rare")
    scheduler = mapping_at(plain, "scheduler")
    if isinstance(max_t := scheduler.get("max_t"), Mapping):
        yield Diagnostic(("scheduler", "max_t"), f"{shown(max_t)}, {what}", "a number of epochs")
    for key, plainly in (("min_compared", 1), ("early", "none"), ("brackets", 1)):
        if (value := scheduler.get(key, plainly)) not in (plainly, {"kind": plainly}):
            yield Diagnostic(("scheduler", key), f"{shown(value)}, {what}", f"{plainly}")
