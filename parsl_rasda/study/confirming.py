"""How a search confirms its winner, and the metric that is looked at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from parsl_rasda.diagnostics import Plain, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import Count, Spec
from parsl_rasda.types import Confirm


class ConfirmSpec(Spec):
    """Which trials are trained again when the search is decided, and how often."""

    top: Count = Field(3, description="How many of the best trials.", examples=[3])
    seeds: Count = Field(5, description="How often each, with a new seed each time.", examples=[5])

    @property
    def counts(self) -> Confirm:
        """The numbers, as the machine takes them."""
        return Confirm(self.top, self.seeds)


def confirm_problems(plain: Plain) -> Iterator[Diagnostic]:
    """Yield a winner that is not one by one metric, and a test metric that something is decided by."""
    if plain.get("confirm") is not None and (plain.get("metrics") or plain.get("constraints")):
        what = "with several metrics" if plain.get("metrics") else "with constraints"
        yield Diagnostic(("confirm",), f"top and seeds, {what}", "nothing: there is no mean of a front")
    test = plain.get("test_metric")
    if isinstance(test, str) and test in _deciding(plain):
        yield Diagnostic(("test_metric",), f"{shown(test)}, by which trials are judged", "another metric")


def _deciding(plain: Plain) -> Iterator[object]:
    yield plain.get("metric")
    for key, name in (("metrics", "name"), ("constraints", "metric")):
        listed = plain.get(key)
        for one in listed if isinstance(listed, list | tuple) else ():
            yield one.get(name) if isinstance(one, Mapping) else None
