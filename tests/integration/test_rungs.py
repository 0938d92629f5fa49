"""First comers that wait, an end between rungs, and a ladder that grows, on real processes."""

from __future__ import annotations

import json

import pytest
from command_line import finish, start

from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study.loading import load_study

pytestmark = [pytest.mark.parsl, pytest.mark.slow, pytest.mark.timeout(300)]

TRAIN = """
def train(trial):
    for epoch in trial.epochs():
        late = 0.15 if trial.config["level"] == 0.1 and epoch >= 8 else 0.0  # who is second falls behind
        trial.report(loss=trial.config["level"] + late + 1 / (epoch + 1))
"""
STUDY = """
name: rungs
tune:
  metric: loss
  num_samples: 6
  scheduler:
    grace_period: 8
    max_t: {auto: 32}
    min_compared: 4
    early: {kind: curve, quantile: 0.9}
  searcher:
    kind: list
    configs: [{level: 0.1}, {level: 0.2}, {level: 0.3}, {level: 0.4}, {level: 0.9}, {level: 0.05}]
  search_space: {level: {float: [0, 1]}}
  training: {python: "train:train"}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: none\nmpi_launcher: process\ngpus_per_node: 1\n"


def test_they_decide_as_they_say_and_a_replay_and_a_higher_cap_as_well(tmp_path) -> None:
    for name, text in (("train.py", TRAIN), ("study.yaml", STUDY), ("site.yaml", SITE)):
        (tmp_path / name).write_text(text)
    code, out, err = finish(
        start(tmp_path, "run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json")
    )
    assert code == 0, err
    ends = {t["trial"]: (t["state"], t["epoch"], t["reason"]) for t in json.loads(out)["trial_list"]}
    ranks = "of 4, best 2 go on"
    assert ends["0002"] == ("stopped", 8, f"rank 3 {ranks}")
    assert ends["0003"] == ("stopped", 8, f"rank 4 {ranks}")
    assert ends["0004"][:2] == ("stopped", 5)
    assert ends["0004"][2].startswith("loss may come to 0.9")
    assert [ends[t][:2] for t in ("0000", "0001")] == [("stopped", 16)] * 2
    assert ends["0005"] == ("completed", 32, "reached max_t 32"), "the second and the third changed places"
    tune = load_study(tmp_path / "study.yaml").tune_stages["tune"].tune
    assert replay_search(RunDirectory(tmp_path / "run"), "rungs", tune).difference == ""
    code, _, err = finish(start(tmp_path, "resume", "run", "--set", "tune.scheduler.max_t={auto: 64}"))
    assert code == 0, err
    code, out, err = finish(start(tmp_path, "verify", "run", "--stretches", "0"))
    assert code == 0, out + err
