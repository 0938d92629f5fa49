"""A study beside modules that have the names of Python's runs, and each finds its own."""

from __future__ import annotations

import json

import pytest
from command_line import finish, start

pytestmark = [pytest.mark.mpi, pytest.mark.parsl, pytest.mark.timeout(240)]

SITE = "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: 2\nmpi_launcher: hydra\n"
STUDY = """\
name: namesakes
stages:
  made: {python: make:make}
  search:
    needs: {made: made}
    tune:
      metric: val_loss
      num_samples: 1
      scheduler: {kind: asha, max_t: 1, num_workers: 2}
      search_space: {lr: {float: [1.0e-3, 1.0e-1]}}
      training: {python: profile:train, batch_size: 4}
"""
FILES = {
    "secrets.py": "TOKEN = 0.25\n",
    "helper.py": "from secrets import TOKEN\n",
    "make.py": """\
import argparse
from secrets import TOKEN

def make():
    argparse.ArgumentParser().parse_args()
    return TOKEN
""",
    "rows.py": """\
import secrets
import torch
from torch.utils.data import Dataset

class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((3,), float(index) * secrets.TOKEN), torch.ones(1)
""",
    "profile.py": """\
import argparse
import secrets

import helper
import numpy as np
import torch
from rows import Rows
from torch import nn

def train(trial):
    argparse.ArgumentParser().parse_args()
    assert trial.inputs["made"] == 0.25
    np.random.default_rng().random()
    torch.multiprocessing.set_start_method("spawn", force=True)
    model, _ = trial.prepare(nn.Linear(3, 1), torch.optim.SGD, lr=1e-3)
    for _ in trial.epochs():
        for x, y in trial.batches(Rows(), workers=1):
            trial.step(nn.functional.mse_loss(model(x), y))
        trial.report(val_loss=secrets.TOKEN + helper.TOKEN)
""",
    **{
        f"{name}.py": f"raise SystemExit('a script called {name}')\n"
        for name in ("getpass", "random", "types", "tempfile", "selectors", "queue", "signal")
    },
}


@pytest.mark.parametrize("environment", [{}, {"PYTHONSAFEPATH": "1"}], ids=["plain", "safe path"])
def test_a_study_runs_beside_namesakes_of_pythons_modules(tmp_path, environment) -> None:
    for name, text in {**FILES, "study.yaml": STUDY, "site.yaml": SITE}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = ("run", "study.yaml", "--site", "site.yaml", "--dir", "r", "--json")
    code, out, err = finish(start(tmp_path, *words, environment=environment))
    assert code == 0, err
    (trial,) = json.loads(out)["trial_list"]
    assert (trial["attempts"], trial["metric"]) == (1, 0.5)
    logs = [file.read_text(encoding="utf-8") for file in tmp_path.glob("r/trials/*/*/log.txt")]
    assert logs
    assert not any("plain start" in log for log in logs), "the fork server served"
