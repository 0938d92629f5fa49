"""A study beside modules that have the names of Python's runs, and each finds its own; torch comes early."""

from __future__ import annotations

import json
import tempfile

import pytest
from command_line import finish, start

from parsl_rasda.runtime.process.forkserver.client import DIRECTORY_VARIABLE

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
import os
import sys
from secrets import TOKEN

def servers():
    return [name for name in os.listdir(os.environ["PARSL_RASDA_FORKSERVERS"]) if name.endswith(".log")]

def make():
    argparse.ArgumentParser().parse_args()
    assert "parsl.dataflow.dflow" in sys.modules
    assert not {"sqlalchemy", "globus_compute_sdk"} & {*sys.modules}, "a worker has what it uses"
    assert len(servers()) == 1, "torch is loaded while stages run"
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
from make import servers
from rows import Rows
from torch import nn

def train(trial):
    argparse.ArgumentParser().parse_args()
    assert trial.inputs["made"] == 0.25
    assert len(servers()) == 1, "and it serves these ranks"
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
    with tempfile.TemporaryDirectory() as sockets:  # short: a socket's path has 107 bytes
        around = {**environment, DIRECTORY_VARIABLE: sockets}
        code, out, err = finish(start(tmp_path, *words, environment=around))
    assert code == 0, err
    (trial,) = json.loads(out)["trial_list"]
    assert (trial["attempts"], trial["metric"]) == (1, 0.5)
    logs = [file.read_text(encoding="utf-8") for file in tmp_path.glob("r/trials/*/*/log.txt")]
    assert logs
    assert not any("plain start" in log for log in logs), "the fork server served"
