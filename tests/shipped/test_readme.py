"""What the README shows works as it stands there."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parsl_rasda.study import load_site, load_study

README = Path(__file__).parents[2] / "README.md"

# What the reader brings to the training function of the README.
BROUGHT = """
import torch
from torch import nn

generator = torch.Generator().manual_seed(0)
x = torch.randn(96, 4, generator=generator)
y = x.sum(1, keepdim=True)
train_set, val_set = (x[:64], y[:64]), (x[64:], y[64:])
loss_fn = nn.functional.mse_loss

def build(config):
    return nn.Linear(4, 1)

def losses(model, shard):
    with torch.no_grad():
        return [((model(a) - b) ** 2).mean(1) for a, b in shard]

"""


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    return [text for found, text in fences if found == language]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "train.py").write_text(BROUGHT + blocks("python")[0])
    return tmp_path


def test_the_study_is_valid_and_says_what_its_comments_say(folder: Path) -> None:
    tune = load_study(folder / "study.yaml").stages["tune"].tune
    assert tune.num_samples == 16
    assert (tune.scheduler.max_t, tune.scheduler.max_workers) == (8, 8)


def test_the_training_function_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    import train  # of the folder
    from parsl_rasda.runtime import local_trial

    trial = local_trial({"lr": 0.05}, epochs=3, batch_size=16)
    train.train(trial)
    reported = [report.metrics["val_loss"] for report in trial.history]
    assert len(reported) == 3
    assert reported[-1] < reported[0]


def modules_with_examples() -> list[str]:
    package = README.parent / "parsl_rasda"
    files = [f.relative_to(README.parent) for f in package.rglob("*.py") if ">>> " in f.read_text()]
    return sorted(".".join(f.with_suffix("").parts).removesuffix(".__init__") for f in files)


@pytest.mark.parametrize("module", modules_with_examples())
def test_the_examples_of_docstrings_give_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.chdir(folder)
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


def test_the_two_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = [line.split()[1] for line in "".join(blocks("sh")).splitlines() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_importing_the_package_imports_neither_torch_nor_parsl() -> None:
    heavy = {"torch", "parsl", "optuna", "globus_compute_sdk"}
    code = f"import sys, parsl_rasda, parsl_rasda.cli.main; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_site_that_we_ship_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("local", "workstation"):
        assert load_site(name).name == name
