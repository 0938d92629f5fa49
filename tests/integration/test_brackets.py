"""Brackets in a real search: its trials are judged at their own rungs, and `verify` finds nothing else."""

from __future__ import annotations

import json

import pytest
from command_line import finish, start

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(300)]

TRAIN = """
import torch

def train(trial):
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    model, _ = trial.prepare(torch.nn.Linear(4, 1), torch.optim.SGD, lr=trial.config["lr"])
    loss = torch.nn.MSELoss()
    for _ in trial.epochs():
        for a, b in trial.batches((x, y)):
            trial.step(loss(model(a), b))
        with torch.no_grad():
            each = [(model(a) - b).square().flatten() for a, b in trial.shard((x, y))]
        trial.report(val_loss=trial.mean(torch.cat(each)))
"""
STUDY = """
name: bracketed
seed: 7
tune:
  metric: val_loss
  num_samples: 8
  scheduler: {max_t: 4, max_workers: 2, brackets: auto}
  search_space: {lr: {float: [0.001, 0.1], log: true}}
  training: {python: "train:train", batch_size: 8}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: 2\n"


def test_a_search_in_brackets_ends_and_is_verified(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "study.yaml").write_text(STUDY)
    words = ("run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json")
    code, out, err = finish(start(tmp_path, *words), 200)
    assert code == 0, err
    found = json.loads(out)
    assert [row["grace_period"] for row in found["brackets"]] == [1, 2]
    trials = {trial["trial"]: trial for trial in found["trial_list"]}
    assert [trial["bracket"] for trial in trials.values()][:4] == [1] * 4
    stopped = [trial for trial in trials.values() if trial["state"] == "stopped"]
    assert stopped
    assert all(trial["epoch"] >= trial["bracket"] + 1 for trial in stopped)
    code, out, err = finish(start(tmp_path, "verify", "run", "--stretches", "0"), 60)
    assert code == 0, out + err
