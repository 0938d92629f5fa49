"""A winner is confirmed in a real search; the test metric is seen at the end alone."""

from __future__ import annotations

import json

import pytest
from command_line import finish, start

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(300)]

TRAIN = """
import torch

def train(trial):
    torch.manual_seed(trial.seed)
    x = torch.randn(16, 4)
    model, _ = trial.prepare(torch.nn.Linear(4, 1), torch.optim.SGD, lr=trial.config["lr"])
    for _ in trial.epochs():
        for (a,) in trial.batches((x,)):
            trial.step((model(a) - a.sum(1, keepdim=True)).square().mean())
        with torch.no_grad():
            shard = [a for (a,) in trial.shard((x,))]
            each = torch.cat([(model(a) - a.sum(1, keepdim=True)).square().flatten() for a in shard])
        trial.report(val_loss=trial.mean(each), test_loss=trial.seed)
"""
STUDY = """
name: confirmed
seed: 7
tune:
  metric: val_loss
  num_samples: 3
  scheduler: {max_t: 2, max_workers: 2}
  search_space: {lr: {float: [0.001, 0.1], log: true}}
  confirm: {top: 1, seeds: 2}
  test_metric: test_loss
  training: {python: "train:train", batch_size: 8}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: 2\n"


def test_a_winner_is_trained_again_with_other_seeds_and_the_run_is_verified(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "study.yaml").write_text(STUDY)
    words = ("run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json")
    code, out, err = finish(start(tmp_path, *words), 200)
    assert code == 0, err
    found = json.loads(out)
    (row,) = found["confirm"]["candidates"]
    assert len(set(row["results"])) == 2, "two seeds"
    assert found["confirm"]["winner"] == row["trial"] == found["best"]["trial"]
    assert found["best"]["confirmed"] == sum(row["results"]) / 2
    assert found["best"]["test"]["metric"] == "test_loss"
    assert row["test"]["n"] == 2
    assert len({found["best"]["test"]["value"], row["test"]["mean"]}) == 2, "their seeds differ"
    code, out, err = finish(start(tmp_path, "report", "run"), 60)
    assert code == 0, out + err
    assert "test_loss" not in (tmp_path / "run" / "metrics.csv").read_text()
    assert "test_loss" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "best.json").read_text())["confirm"] == found["confirm"]
    code, out, err = finish(start(tmp_path, "verify", "run", "--stretches", "0"), 60)
    assert code == 0, out + err
