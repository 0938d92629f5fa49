"""A front in words and as a chart."""

from __future__ import annotations

from typing import Any

from parsl_rasda.orchestration.summary import no_search
from parsl_rasda.reporting.front_chart import front_chart
from parsl_rasda.reporting.tables import _facts


def summary(count: int) -> dict[str, Any]:
    trials = [
        {"trial": str(i), "state": "completed", "metrics": {"loss": float(i), "latency": 9.0 - i}}
        for i in range(count)
    ]
    front = [{"trial": t["trial"], "values": t["metrics"], "keeps_limits": t["trial"] != "0"} for t in trials]
    return {**no_search("s"), "trial_list": [*trials, {**trials[0], "trial": "x"}], "front": front}


def test_a_chart_has_a_dot_for_each_trial_and_marks_the_front() -> None:
    drawn = front_chart(summary(3))
    assert drawn is not None
    dots = [s.attributes for s in drawn.shapes if s.name == "circle"]
    assert {d["data-trial"] for d in dots} == {"0", "1", "2", "x"}
    assert {d["data-trial"] for d in dots if "best" in str(d["class"])} == {"0", "1", "2"}
    assert front_chart(no_search("s")) is None


def test_status_lists_the_front_with_all_values() -> None:
    said = [str(text) for name, text in _facts(summary(10)) if name in ("front", "")]
    assert said[0] == "trial 0: loss 0  latency 9 (breaks a limit, as all do)"
    assert said[8] == "and 2 more"
