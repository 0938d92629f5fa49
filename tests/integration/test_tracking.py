"""Trackers and notices of a real run whose controller is killed: they come to have what the journal has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from command_line import REPOSITORY, finish, start
from studies import SITE, wait_until_none_is_left

from parsl_rasda.orchestration.journal import read
from tests.unit.tracking.test_trackers import as_text, expected, in_mlflow, in_tensorboard, in_wandb

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

DYING = Path(__file__).parent / "dying_controller.py"
STUDY = """
name: rehearsed
seed: 5
with: {epoch_s: 0.2, efficiency: 0.9, seed: 5}
track:
  - tensorboard
  - mlflow: sqlite:///server.db
  - wandb: {project: mine}
  - mlflow: http://127.0.0.1:9
notify:
  command: [sh, -c, 'echo "$RASDA_EVENT $0" >> notices.txt', "{message}"]
tune:
  metric: val_loss
  num_samples: 6
  scheduler: {variant: synchronous, max_t: 4, max_workers: 4}
  search_space:
    lr: {float: [1.0e-4, 1.0e-1], log: true}
  training:
    python: workflows.emulated.train:train
"""


def die(folder: Path, count: int, *words: str) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    dying = [sys.executable, str(DYING), str(count), *words]
    done = subprocess.run(
        dying, cwd=folder, env={**os.environ, **environment}, timeout=120, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def make_server(database: Path) -> None:
    """Make a database of MLflow's, which is there before a study is: half made, it stays unreadable."""
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()


def test_after_kills_and_resumptions_all_trackers_have_what_the_journal_has(tmp_path: Path) -> None:
    for name in ("tensorboard", "mlflow", "wandb"):
        pytest.importorskip(name)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "logical.yaml").write_text(SITE)
    make_server(tmp_path / "server.db")
    die(tmp_path, 20, "run", "study.yaml", "--site", "logical.yaml", "--dir", "run")
    die(tmp_path, 36, "resume", "run")
    environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    code, _, said = finish(start(tmp_path, "resume", "run", "--json", environment=environment))
    assert code == 0, said
    assert "is not up to date" not in said
    assert "track: mlflow http://127.0.0.1:9 cannot be written, the study goes on" in said, (
        "nobody listens there"
    )
    wanted = as_text(expected(list(read(tmp_path / "run" / "journal.jsonl"))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their libraries, about each other
        assert as_text(in_tensorboard(tmp_path / "run")) == wanted
        assert as_text(in_wandb(tmp_path / "run")) == wanted
        assert as_text(in_mlflow(f"sqlite:///{tmp_path / 'server.db'}")) == wanted
    wait_until_none_is_left(tmp_path)
    notices = (tmp_path / "notices.txt").read_text().splitlines()
    assert [line.split()[0] for line in notices].count("end") == 1
    assert notices[-1] == "end the search has ended: done"
    rungs = [line for line in notices if line.startswith("rung ")]  # a controller may die before it tells
    assert 1 <= len(set(rungs)) == len(rungs) <= 3, notices
