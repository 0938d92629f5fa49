"""What a report says of hyperparameters, of progress, of faults, and to a paper; and runs side by side."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from parsl_rasda.cli.main import app
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.events import EpochReported
from parsl_rasda.reporting.best_so_far import Best, Line, best_charts, best_so_far, other_of_best
from parsl_rasda.reporting.comparison import comparison
from parsl_rasda.reporting.fault_timeline import fault_timeline
from parsl_rasda.reporting.figures import write_figures
from parsl_rasda.reporting.importance import importance_of
from parsl_rasda.reporting.methods import methods_text
from parsl_rasda.reporting.parallel import parallel_coordinates
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.search.space import SearchSpace

SPACE = {
    "lr": {"float": [0.001, 1.0], "log": True},
    "noise": {"float": [0, 1]},
    "kind": {"choice": ["a", "b"]},
}


def summary_of(results: list[tuple[dict[str, Any], float]], mode: str = "min") -> dict[str, Any]:
    trials = [
        {
            "trial": f"{i:04d}",
            "state": "completed",
            "metric": metric,
            "epoch": 1,
            "history": [[1, metric]],
            "config": config,
        }
        for i, (config, metric) in enumerate(results)
    ]
    return {"metric": "loss", "mode": mode, "best": None, "rungs": [{"epochs": 1}], "trial_list": trials}


def results_by_lr(count: int) -> list[tuple[dict[str, Any], float]]:
    """Return results that the rate alone decides."""
    lrs = [0.001 * 10 ** (3 * i / count) for i in range(count)]
    rest = [{"noise": i * 7 % count / count, "kind": "ab"[i % 2]} for i in range(count)]
    return [({"lr": lr, **other}, math.log(lr / 0.03) ** 2) for lr, other in zip(lrs, rest, strict=True)]


# ------------------------------------------------------------------------------- hyperparameters


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_decides_alone_is_the_most_important(mode: str) -> None:
    sign = 1 if mode == "min" else -1
    results = [(config, sign * metric) for config, metric in results_by_lr(40)]
    found = importance_of(summary_of(results, mode), SearchSpace.from_mapping(SPACE))
    assert found is not None
    assert next(iter(found.shares)) == "lr"
    assert found.shares["lr"] > 0.5
    assert math.isclose(sum(found.shares.values()), 1.0)
    assert (found.epochs, found.trials) == (1, 40)


def test_of_a_few_trials_nothing_is_said() -> None:
    assert importance_of(summary_of(results_by_lr(7)), SearchSpace.from_mapping(SPACE)) is None
    nans = [(config, math.nan) for config, _ in results_by_lr(20)]
    assert importance_of(summary_of(nans), SearchSpace.from_mapping(SPACE)) is None


def test_a_line_is_broken_where_a_trial_lacks_a_parameter_and_every_axis_has_ticks() -> None:
    results = results_by_lr(12)
    del results[3][0]["noise"]
    space = SearchSpace.from_mapping(SPACE).parameters
    found = parallel_coordinates(summary_of(results), space, ["lr", "noise", "kind"])
    assert found is not None
    curves = {
        s.attributes["data-trial"]: str(s.attributes["d"])
        for s in found.shapes
        if "data-trial" in s.attributes
    }
    assert curves["0003"].count("M") == 2
    assert curves["0004"].count("M") == 1
    names = [s.text for s in found.shapes if s.attributes["class"] == "name"]
    assert names == ["kind", "noise", "lr", "loss"], "the most important beside the metric"
    ticks = [s.attributes["x"] for s in found.shapes if str(s.attributes["class"]).startswith("tick")]
    assert min(ticks.count(x) for x in {*ticks}) >= 2
    assert len({*ticks}) == 4


# ------------------------------------------------------------------------------- progress and faults


def test_the_best_so_far_only_gets_better_and_ends_with_the_run(finished: Path) -> None:
    run = read_run(finished)
    history, summary = run.searches["tune"], run.summaries()["tune"]
    found = best_so_far(history.records, "val_loss", "min")
    metrics = [best.metric for best in found]
    assert all(a > b for a, b in pairwise(metrics[:-1]))
    assert min(m for t in summary["trial_list"] for _, m in t["history"] if m is not None) == metrics[-1]
    assert math.isclose(found[-1].seconds, summary["makespan_s"], abs_tol=1e-3)
    assert math.isclose(found[-1].gpu_hours, summary["gpu_hours"], abs_tol=1e-4)


def test_another_metric_of_the_best_so_far_is_the_one_reported_with_it(
    rehearsals: Any, tmp_path: Path
) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), also={"train_loss": lambda epoch: 2.0**-epoch})
    records = read_run(tmp_path).searches["tune"].records
    points = best_so_far(records, "val_loss", "min")
    others = other_of_best(points, "train_loss")
    reports = [r.event for r in records if isinstance(r.event, EpochReported)]
    with_best = {r.metrics["val_loss"]: r.metrics["train_loss"] for r in reports}
    assert [p.metric for p in others] == [with_best[p.metric] for p in points]
    assert other_of_best(points, "unheard") == []
    titles = [drawn.title for drawn in best_charts([Line("a", "best", others)], "train_loss", None)]
    assert titles[0] == "train_loss of the best so far over time"


points = st.lists(
    st.builds(Best, st.floats(0, 1e6), st.floats(0, 1e5), st.floats(-1e6, 1e6)), max_size=8
).map(lambda found: sorted(found, key=lambda best: best[:3]))


@given(lines=st.lists(points, max_size=3), mode=st.sampled_from(["min", "max"]))
def test_any_lines_are_drawn_inside_their_charts(lines: list[list[Best]], mode: str) -> None:
    charts = best_charts([Line(str(i), f"run-{i}", line) for i, line in enumerate(lines)], "loss", mode)
    assert len(charts) == (2 if any(lines) else 0)
    for drawn in charts:
        paths = [str(s.attributes["d"]) for s in drawn.shapes if "curve" in str(s.attributes["class"])]
        assert len(paths) == sum(bool(line) for line in lines)
        numbers = [
            float(n) for p in paths for n in p.replace("M", " ").replace("H", " ").replace("V", " ").split()
        ]
        assert all(-1 <= n <= float(drawn.width) for n in numbers)


def test_a_run_without_faults_has_no_timeline_and_one_with_them_says_which(
    rehearsals: Any, tmp_path: Path
) -> None:
    from parsl_rasda.orchestration.events import SiteDegraded
    from parsl_rasda.orchestration.journal import Record

    rehearsals.into(tmp_path / "run", rehearsals.study_of())
    records = list(read_run(tmp_path / "run").searches["tune"].records)
    assert fault_timeline(records) is None
    at = records[len(records) // 2].event.at
    records.insert(len(records) // 2, Record(SiteDegraded(at, "virtual", "its disk is slow"), ()))
    found = fault_timeline(records)
    assert found is not None
    (note,) = (s.attributes["data-note"] for s in found.shapes if s.name == "circle")
    assert str(note).endswith("site virtual: its disk is slow")


# ------------------------------------------------------------------------------------- for papers


def test_the_methods_have_what_a_reviewer_asks_for(finished: Path) -> None:
    run = read_run(finished)
    text = methods_text(run, "tune", run.summaries()["tune"])
    for words in (
        "RASDA (doi:10.1016/j.future.2025.108042; variant stopping)",
        "at most 8 epochs and were judged by val_loss (smaller is better) after 1, 2 and 4 epochs, where one",
        "replicas of a trial grew by a factor of 2 at each rung, from 1 to at most 4, on 1 to 4 slots (",
        "A step had at most 32 samples a replica",
        "8 configurations came from the random searcher (seed 3)",
        "lr, a real number in [0.001, 0.1]; optimizer in {sgd, adamw}",
        "other versions were not noted",
        "slot-hours",
        "Of 8 trials",
    ):
        assert words in text


def test_figures_are_pictures_of_their_own(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    written = write_figures(read_run(finished), tmp_path / "figures")
    names = {file.name for file in written}
    assert {"curves-val_loss.svg", "best-over-time.svg", "best-over-gpu-hours.svg", "slots.svg"} <= names
    assert {"parallel.svg", "val_loss_over_lr.svg"} <= names
    for file in written:
        if file.suffix == ".svg":
            root = ET.fromstring(file.read_text())  # our own
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(" not in file.read_text(), "programs for papers know no variables of CSS"
            assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_pipeline_are_those_of_its_search(pipeline: Path, tmp_path: Path) -> None:
    names = {file.name for file in write_figures(read_run(pipeline), tmp_path / "figures")}
    assert {"curves-val_loss.svg", "slots.svg"} <= names


def test_runs_stand_side_by_side(rehearsals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rehearsals.into(tmp_path / "one", rehearsals.study_of())
    rehearsals.into(tmp_path / "two", rehearsals.study_of(num_samples=4))
    result = CliRunner().invoke(app, ["report", "one", "two"])
    assert result.exit_code == 0
    assert "wrote compare.html" in result.stdout
    text = Path("compare.html").read_text(encoding="utf-8")
    assert '<td data-name="one">8</td><td data-name="two">4</td>' in text
    assert text.count('class="curve run-0"') == text.count('class="curve run-1"') == 2
    assert not (tmp_path / "one" / "report.html").exists()


def test_runs_that_are_judged_otherwise_are_not_compared(rehearsals: Any, tmp_path: Path) -> None:
    rehearsals.into(tmp_path / "one", rehearsals.study_of())
    rehearsals.into(tmp_path / "two", rehearsals.study_of(mode="max"))
    with pytest.raises(InvalidSettingError, match=r"val_loss \(max\), val_loss \(min\)"):
        comparison([read_run(tmp_path / name) for name in ("one", "two")])
