"""A notebook tunes a function that it defines, and shows the result; a script does, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import REPOSITORY, finish, start

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

BEGIN = """
import os
os.chdir({folder!r})
import parsl
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor
from parsl_rasda import Slots, Study, tune
threads = ThreadPoolExecutor(label="gpu", max_threads=4)
parsl.load(Config([threads], usage_tracking=0, initialize_logging=False))
"""
DEFINE = """
import torch
from torch import nn

WIDTH = 3

def build(config):
    return nn.Linear(WIDTH, 1)

def train(trial):
    assert trial.max_epochs == 2
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1))
    y = x.sum(1, keepdim=True)
    model, _ = trial.prepare(build(trial.config), torch.optim.SGD, lr=trial.config["lr"])
    for epoch in trial.epochs():
        for a, b in trial.batches((x, y)):
            trial.step((model(a) - b).square().mean())
        losses = [(model(a) - b).square().mean() for a, b in trial.shard((x, y))]
        trial.report(val_loss=trial.mean(losses), accuracy=0.5)

study = Study(
    tune={
        "metric": "val_loss",
        "num_samples": 2,
        "scheduler": {"max_t": 2, "max_workers": 1},
        "search_space": {"lr": {"float": [0.01, 0.1]}},
        "training": {"python": train, "batch_size": 8},
    },
    name="notebook",
)
"""
TUNE = """
slots = Slots("gpu", gpus_per_node=2, accelerator="cpu", mpi_launcher="process")
future = tune(study, slots=slots, directory="run", progress=True)
result = future.result(timeout=200)
"""
CHECK = """
model = result.load_model(build)
assert model.weight.shape == (1, 3)
assert set(result.dataframe()["state"]) <= {"completed", "stopped"}
parsl.dfk().cleanup()
result
"""


def test_a_notebook_tunes_a_function_defined_in_it_and_shows_the_result(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [BEGIN.format(folder=str(tmp_path)), DEFINE, TUNE, CHECK]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    client = nbclient.NotebookClient(notebook, timeout=250, kernel_name="python3")
    client.execute(env={**os.environ, "PYTHONPATH": path})
    progress = [o.data["text/plain"] for o in notebook.cells[2].outputs if o.output_type == "display_data"]
    assert len(progress) == 1, "one line, which was updated in place"
    assert progress[0].startswith("tune: 2 of 2 trials have ended, 0 running")
    (shown,) = [o.data for o in notebook.cells[3].outputs if o.output_type == "execute_result"]
    assert "<svg" in shown["text/html"]
    assert shown["text/plain"].startswith("StudyResult(")
    code, _, said = finish(start(tmp_path, "resume", "run", "--json"))
    assert code == 0, said


def test_a_script_tunes_a_function_of_its_own_without_running_again_on_ranks(tmp_path: Path) -> None:
    cells = [BEGIN.format(folder=str(tmp_path)), DEFINE, TUNE.replace(", progress=True", ""), CHECK]
    (tmp_path / "script.py").write_text("print('once')\n" + "\n".join(cells))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 1
