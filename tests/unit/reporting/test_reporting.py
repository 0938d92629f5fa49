from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.events import PilotEnded
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.files import COLUMNS, results_csv, write_report
from parsl_rasda.reporting.format import config_text, duration, number, percent, plain_json, truncated
from parsl_rasda.reporting.html import page
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.tables import as_text, exactness, status_view, summary_view, trials_view
from parsl_rasda.study import StudySpec
from parsl_rasda.types import GradientNoise


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def test_results_have_one_row_per_trial_with_each_setting(finished) -> None:
    files = write_report(read_run(finished))
    assert [f.relative_to(finished).as_posix() for f in files] == [
        *("report.html", "graph.graphml", "graph.mmd", "graph.svg"),
        *("results.csv", "metrics.csv", "asha.svg", "best.json", "summary.txt"),
    ]
    rows = rows_of(finished / "results.csv")
    assert list(rows[0]) == [*COLUMNS, "lr", "optimizer"]
    assert [r["trial"] for r in rows] == [f"{i:04d}" for i in range(8)]
    assert [r["optimizer"] for r in rows[:2]] == ["adamw", "sgd"]
    assert float(rows[3]["lr"]) == pytest.approx(0.004)
    failed = [r for r in rows if r["state"] == "failed"]
    assert [(r["trial"], r["metric"], r["epochs"]) for r in failed] == [("0005", "", "1")]
    assert "val_loss is nan" in failed[0]["reason"]


def test_the_best_trial_is_the_best_row(finished) -> None:
    write_report(read_run(finished))
    best = json.loads((finished / "best.json").read_text())
    rows = [r for r in rows_of(finished / "results.csv") if r["state"] != "failed"]
    assert best["best"]["trial"] == min(rows, key=lambda r: float(r["metric"]))["trial"]
    assert (best["study"], best["state"], best["metric"], best["mode"]) == (
        "rehearsed",
        "done",
        "val_loss",
        "min",
    )


def test_a_setting_named_like_a_column_keeps_both() -> None:
    trial = {
        "trial": "0000",
        "state": "completed",
        "epoch": 4,
        "metric": 0.5,
        "replicas": 1,
        "attempts": 1,
        "reason": 'says "enough", ends',
        "config": {"epochs": 9, "layers": [1, 2]},
    }
    (row,) = csv.DictReader(io.StringIO(results_csv({"trial_list": [trial]})))
    assert (row["epochs"], row["config.epochs"], row["layers"]) == ("4", "9", "[1, 2]")
    assert row["reason"] == 'says "enough", ends'


def test_a_summary_tells_what_people_ask_first(finished) -> None:
    summary = read_run(finished).document()
    text = as_text(summary_view(summary))
    assert text.startswith("rehearsed: done after ")
    for part in (
        f"trial {summary['best']['trial']}: val_loss",
        "checkpoint",
        "slot-hours",
        "restarts",
        "trial 0005: val_loss is nan after epoch 1",
    ):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 120


def test_the_summary_file_lists_every_trial_with_its_reason(finished) -> None:
    write_report(read_run(finished))
    text = (finished / "summary.txt").read_text()
    summary = read_run(finished).document()
    for trial in summary["trial_list"]:
        (line,) = [ln for ln in text.splitlines() if ln.startswith(trial["trial"])]
        assert trial["state"] in line
        assert trial["reason"] in line
    assert "\x1b" not in text


def test_a_long_table_is_cut_and_says_so(finished) -> None:
    text = as_text(trials_view(read_run(finished).document(), most=3))
    assert "and 5 more" in text
    assert text.splitlines()[1].startswith("0005"), "failures come first"


def test_a_run_that_nobody_runs_any_more_is_interrupted(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), torn_after=60.0)
    run = read_run(tmp_path)
    document = run.document()
    assert run.controller is None
    assert document["state"] == "interrupted"
    assert document["trials"]["running"] == 0, "nothing runs without a controller"
    assert document["trials"]["waiting"] > 0
    assert all(trial["state"] != "running" for trial in document["trial_list"])
    assert document["makespan_s"] <= 60.0


def test_while_somebody_runs_it_numbers_are_as_of_now(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), torn_after=60.0)
    with RunDirectory(tmp_path).controlled():
        document = read_run(tmp_path).document(now=100.0)
    assert f"process {os.getpid()}" in document["controller"]
    assert document["state"] == "running"
    assert document["makespan_s"] == 100.0
    assert document["gpu_hours"] == pytest.approx(4 * (100.0 - 12.0) / 3600, abs=1e-5)


def test_a_run_tells_which_pilots_it_waits_for_and_since_when(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), torn_after=5.0)
    (site,) = read_run(tmp_path).sites
    assert read_run(tmp_path).document()["awaited"] == [], "nobody runs it"
    with RunDirectory(tmp_path).controlled():
        document = read_run(tmp_path).document(now=6.0)
    assert [(a["site"], a["since"]) for a in document["awaited"]] == [(site, 0.0)]
    text = as_text(status_view(document))
    assert f"waiting  for a pilot of {site}, since " in " ".join(text.split(" ")).replace("   ", "  ")


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (GradientNoise(0.5, 50.0), ["1", "100"]),
        (GradientNoise(-0.5, 50.0), ["1", "all noise"]),
        (GradientNoise(0.5, -7.3), ["1", "-"]),  # -14.6 would be no scale, and neither would 0
    ],
)
def test_the_noise_scale_is_told_for_each_rung_where_it_is_known(
    rehearsals, tmp_path, noise: GradientNoise, words: list[str]
) -> None:
    noisy = rehearsals.costs_of(noise=lambda *_: noise)
    rehearsals.into(tmp_path, rehearsals.study_of(), costs=noisy)
    text = as_text(status_view(read_run(tmp_path).document()))
    ladder = [line for line in text.splitlines() if "noise scale" in line or line.split()[:2] == ["0", "1"]]
    assert ladder[0].split()[-3:] == ["batches", "noise", "scale"]
    assert ladder[1].split()[-len(" ".join(words).split()) :] == " ".join(words).split()
    cell = re.search(r'data-name="noise scale"( title="[^"]+")?>([^<]*)<', page(read_run(tmp_path)))
    assert cell is not None
    assert (cell[2], cell[1] is not None) == (words[1], words[1] != "100"), "what is no number has its reason"


def test_status_and_report_say_whether_rungs_tell_the_truth(rehearsals, tmp_path) -> None:
    def metric(trial: int, epoch: int) -> float:
        return random.Random(
            f"{trial} {epoch // 4}"
        ).random()  # whoever is good at first is as any other later

    study = rehearsals.study_of(num_samples=80, scheduler={"variant": "promotion"})
    rehearsals.into(tmp_path, study, costs=rehearsals.costs_of(metric=metric))
    run = read_run(tmp_path)
    first, second, *_ = run.document()["rank_agreement"]["rungs"]
    assert (first["epochs"], first["tau"]) == ([1, 2], 1.0)
    low, high = second["interval"]
    assert low <= second["tau"] <= high < 0.7
    text = " ".join(as_text(status_view(run.document())).split())
    assert f"tau-b with its 95 % interval: 1-2 1.00 ({first['interval'][0]:.2f} to 1.00, " in text
    assert "epoch 1 says little about epoch" in text
    assert "Epoch 1 says little about epoch" in page(run)


def test_of_too_few_trials_no_agreement_is_told(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(num_samples=4))
    assert "agreement" not in as_text(status_view(read_run(tmp_path).document()))
    assert "agreement" not in page(read_run(tmp_path))


def test_the_noise_scale_is_not_mentioned_where_nobody_knows_it(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of())
    assert "noise scale" not in as_text(status_view(read_run(tmp_path).document()))


def test_it_says_whether_training_is_exact_and_names_different_gpus(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of())
    summary = read_run(tmp_path).document()
    assert "exact" not in as_text(status_view(summary)), "a rehearsal trains nothing"
    second = summary["trial_list"][1]
    for trial in summary["trial_list"]:
        trial |= {"exact": "yes", "devices": ["NVIDIA A100"]}
    text = as_text(status_view(summary))
    assert [line.split() for line in text.splitlines() if "exact" in line] == [["exact", "yes"]]
    assert "A100" not in text
    second |= {"exact": "best effort because of x", "devices": ["NVIDIA H100"]}
    lines = dict(exactness(summary))
    assert lines[""] == f"best effort because of x: trial {second['trial']}"
    assert lines["exact"].startswith("yes: trial")
    assert lines["GPU models"].endswith(f"NVIDIA H100: {second['trial']}")


def test_a_run_tells_which_sites_are_left_alone_and_until_when(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), torn_after=5.0)
    with RunDirectory(tmp_path).controlled():
        run = read_run(tmp_path)
        (history,) = run.searches.values()
        (site,) = run.sites
        pilots = history.machine.pilots
        for _ in range(3):  # in a row that come to nothing
            pilots.ended(PilotEnded(600.0, pilots.request(site).pilot, site, "refused", usable=False))
        pilots.back_off(site, 600.0)
        document = run.document(now=601.0)
    assert [(r["site"], r["until"] > 600.0) for r in document["resting"]] == [(site, True)]
    assert f"{site}, which refused; asked again from " in as_text(status_view(document))


def test_a_search_that_has_not_begun_says_so(rehearsals, tmp_path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of())
    (tmp_path / "journal.jsonl").unlink()
    document = read_run(tmp_path).document()
    assert document["best"] is None
    assert "has not begun" in as_text(status_view(document))


def test_several_searches_each_have_their_own_place(rehearsals, tmp_path) -> None:
    tune = rehearsals.study_of().tune_stages["tune"].model_dump(mode="json", by_alias=True)
    study = StudySpec.model_validate({"name": "two", "stages": {"coarse": tune, "fine": tune}})
    rehearsals.into(tmp_path, study, stage="coarse")
    document = read_run(tmp_path).document()
    assert document["state"] == "interrupted"
    assert document["searches"]["coarse"]["state"] == "done"
    assert document["searches"]["fine"]["state"] == "waiting"
    assert document["searches"]["fine"]["trial_list"] == []
    files = write_report(read_run(tmp_path))
    assert tmp_path / "coarse" / "results.csv" in files


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.314, "0.31 s"),
        (4.2, "4.2 s"),
        (59.96, "60.0 s"),
        (61, "1 min 1 s"),
        (723, "12 min 3 s"),
        (12_000, "3 h 20 min"),
        (100_000, "1 d 3 h"),
        (None, "-"),
    ],
)
def test_durations_have_the_two_units_that_matter(seconds, text) -> None:
    assert duration(seconds) == text


def test_words_are_short() -> None:
    assert number(0.123456789) == "0.12346"
    assert percent(0.816) == "82 %"
    assert (
        config_text({"lr": 0.00123456, "optimizer": "sgd", "on": True})
        == "lr=0.0012346  optimizer=sgd  on=true"
    )
    assert truncated({"a": list(range(99))}, 20) == '{"a": [0, 1, 2, 3, …'


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything)
def test_whatever_is_printed_is_valid_json(value) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(json.dumps(plain_json(value), allow_nan=False), parse_constant=refuse)
