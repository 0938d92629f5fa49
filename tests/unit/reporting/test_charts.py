"""Scales, ticks and charts of a report."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.reporting.charts import Chart, count_far_off, hyperparameters, learning_curves
from parsl_rasda.reporting.gantt import slots_over_time
from parsl_rasda.reporting.occupancy import occupancy_of
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.scales import Scale, metric_scale, time_ticks
from parsl_rasda.search.space import SearchSpace

finite = st.floats(allow_nan=False, allow_infinity=False)


def trial_of(
    number: int, history: list[tuple[int, float | None]], state: str, **config: Any
) -> dict[str, Any]:
    epoch, metric = history[-1]
    trial = {"trial": f"{number:04d}", "state": state, "epoch": epoch, "metric": metric, "config": config}
    return {**trial, "history": history}


def summary_of(*trials: dict[str, Any], best: str | None = None, mode: str = "min") -> dict[str, Any]:
    rungs = [{"rung": k, "epochs": epochs} for k, epochs in enumerate((1, 2, 4))]
    found = None if best is None else {"trial": best}
    return {"metric": "loss", "mode": mode, "best": found, "rungs": rungs, "trial_list": list(trials)}


def shapes_of(chart: Chart | None, name: str) -> list[dict[str, Any]]:
    """Return the attributes of a chart's shapes of a name."""
    assert chart is not None
    return [dict(shape.attributes) for shape in chart.shapes if shape.name == name]


@given(values=st.lists(finite, min_size=1), smaller=st.booleans())
def test_every_metric_has_a_place_on_the_picture(values: list[float], smaller: bool) -> None:
    scale = metric_scale(values, 400.0, 10.0, smaller_is_better=smaller)
    assert all(10.0 <= scale(v) <= 400.0 for v in values)
    best = min(max(min(values) if smaller else max(values), -1e300), 1e300)
    assert scale.low <= best <= scale.high, "what counts is never cut off"
    ticks = scale.ticks()
    assert len(ticks) <= 12
    assert all(label for _, label in ticks)


@given(low=st.floats(1e-12, 1e12), span=st.floats(1.0001, 1e9), log=st.booleans())
def test_ticks_are_few_and_inside(low: float, span: float, log: bool) -> None:
    scale = Scale(low, low * span, 0.0, 100.0, log=log)
    values = [value for value, _ in scale.ticks()]
    assert 1 <= len(values) <= 8
    assert all(low * (1 - 1e-6) <= v <= low * span * (1 + 1e-6) for v in values)
    assert values == sorted(values)


@given(st.floats(0.01, 1e8))
def test_times_are_marked_at_round_ones(span_s: float) -> None:
    ticks = time_ticks(span_s)
    assert ticks[0] == (0, "0")
    assert 1 <= len(ticks) <= 12
    assert ticks[-1][0] <= span_s * 1.001


def test_metrics_over_decades_are_on_a_logarithm_and_few_far_ones_on_the_border() -> None:
    assert metric_scale([0.001, 0.02, 0.5], 1, 0, smaller_is_better=True).log
    accuracies = [0.9 + i / 1000 for i in range(50)]
    assert not metric_scale(accuracies, 1, 0, smaller_is_better=False).log
    assert metric_scale([*accuracies, -40.0], 1, 0, smaller_is_better=False).low > 0.8
    assert metric_scale([*accuracies, 40.0], 1, 0, smaller_is_better=True).high < 1.1
    far = [trial_of(i, [(1, 0.5 + i / 100)], "stopped") for i in range(40)]
    assert count_far_off(summary_of(*far, trial_of(40, [(1, -900.0)], "stopped"), mode="max")) == 1


def test_there_is_a_curve_a_trial_and_the_best_lies_on_top() -> None:
    found = learning_curves(
        summary_of(
            trial_of(0, [(1, 0.5), (2, 0.3)], "completed"),
            trial_of(1, [(1, 0.9)], "stopped"),
            trial_of(2, [(1, None)], "failed"),
            trial_of(3, [(e, 1 / e) for e in range(1, 2001)], "completed"),
            best="0000",
        )
    )
    curves = [path for path in shapes_of(found, "path") if "data-trial" in path]
    assert [c["data-trial"] for c in curves] == ["0001", "0003", "0000"]
    assert [c["class"] for c in curves] == ["curve stopped", "curve completed", "curve completed best"]
    assert curves[0]["d"].endswith("h0"), "a single result is a dot"
    assert len(curves[1]["d"].split()) < 700, "a long curve is thinned out"


def test_without_a_result_there_is_no_chart() -> None:
    assert learning_curves(summary_of()) is None
    assert learning_curves(summary_of(trial_of(0, [(1, None)], "failed"))) is None


def test_each_hyperparameter_that_varies_has_a_chart_with_the_trials_that_have_it() -> None:
    space = SearchSpace.from_mapping(
        {
            "lr": {"float": [1e-4, 1e-1], "log": True},
            "optimizer": {"choice": ["sgd", "adamw"]},
            "momentum": {"float": [0.0, 0.9], "when": {"optimizer": "sgd"}},
            "layers": {"choice": [[1, 2], [3]]},
            "always": 3,
        }
    ).parameters
    trials = [
        trial_of(0, [(1, 0.5)], "stopped", lr=1e-4, optimizer="sgd", momentum=0.1, layers=[1, 2], always=3),
        trial_of(1, [(4, 0.1)], "completed", lr=1e-2, optimizer="adamw", layers=[3], always=3),
        trial_of(2, [(2, 0.3)], "stopped", lr=1e-1, optimizer="sgd", momentum=0.9, layers=[3], always=3),
    ]
    charts = hyperparameters(summary_of(*trials, best="0001"), space)
    names = [c.title.removeprefix("loss over ") for c in charts]
    assert names == ["lr", "optimizer", "momentum", "layers"]
    dots = {
        name: {circle["data-trial"]: circle for circle in shapes_of(chart, "circle")}
        for name, chart in zip(names, charts, strict=True)
    }
    assert set(dots["momentum"]) == {"0000", "0002"}
    x = {trial: float(circle["cx"]) for trial, circle in dots["lr"].items()}
    thirds = (x["0001"] - x["0000"]) / (x["0002"] - x["0000"])
    assert thirds == pytest.approx(2 / 3, abs=0.01), "on a logarithm, as it is searched"
    radius = {trial: float(circle["r"]) for trial, circle in dots["lr"].items()}
    assert radius["0000"] < radius["0002"] < radius["0001"], "larger the longer it trained"


@pytest.mark.parametrize("gpus", [2, 16, 1024])
def test_slots_are_rows_whatever_their_number(gpus: int, rehearsals: Any, tmp_path: Any) -> None:
    from parsl_rasda.simulation.rehearsal import VirtualSite

    site = VirtualSite(nodes=max(1, gpus // 4), gpus_per_node=min(4, gpus))
    rehearsals.into(tmp_path, rehearsals.study_of(scheduler={"max_workers": 2}), site=site)
    run = read_run(tmp_path)
    occupancy = occupancy_of(run.searches["tune"].records)
    span_s = occupancy.close()
    chart = slots_over_time(run.document(), occupancy, span_s)
    assert chart is not None
    width, height = float(chart.width), float(chart.height)
    bars = [bar for bar in shapes_of(chart, "rect") if "job" in bar["class"]]
    assert {b["data-trial"] for b in bars} == {f"{i:04d}" for i in range(8)}
    for bar in shapes_of(chart, "rect"):
        x, y, w, h = (float(bar[k]) for k in ("x", "y", "width", "height"))
        assert min(x, y, w, h) >= 0
        assert x + w <= width + 0.5
        assert y + h <= height
    assert height < 620
    note = bars[0]["data-note"]
    assert note.startswith("attempt 1 on ")
    assert not math.isnan(span_s)
