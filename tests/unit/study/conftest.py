from __future__ import annotations

from pathlib import Path

import pytest

STEPS = """
from somewhere.heavy import anything  # would fail if it were imported

def simulate(seed, grid, directory, *, viscosity: float = 0.01): ...
def prepare(fields, directory): ...
def train(trial): ...
def evaluate(best, data): ...
"""

STUDY = """\
name: cfd
seed: 7
stages:
  simulate:
    python: steps:simulate
    for_each: {seed: [0, 1, 2]}
    with: {grid: 64, viscosity: 2e-3}
  prepare:
    python: steps:prepare
    needs: {fields: simulate}
  tune:
    needs: {data: prepare}
    tune:
      metric: val_loss
      mode: min
      num_samples: 16
      scheduler:
        kind: rasda
        grace_period: 1
        max_t: 8
        max_workers: 8
      searcher: {kind: tpe, n_startup_trials: 4}
      search_space:
        lr: {float: [1e-4, 1e-1], log: true}
        batch: {choice: [16, 32]}
        optimizer: {choice: [sgd, adamw]}
        momentum: {float: [0.0, 0.99], when: {optimizer: sgd}}
      training:
        python: steps:train
        batch_size: batch
        warmup: {initial: 1}
  evaluate:
    python: steps:evaluate
    needs: {best: tune, data: prepare}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good study and the functions that it names."""
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path
