"""A loop with plain DDP that has no prepared model: one process and two ranks."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter

import pytest
import trainer_cases
import trainer_functions
from backend_tools import eventually
from rank_launch import ENVIRONMENT, epochs_of, finished, mpi_command, report_of, written_order

from parsl_rasda.types import Outcome

pytestmark = pytest.mark.slow


def test_an_interrupted_trial_goes_on_at_its_next_step(tmp_path) -> None:
    trainer_cases.check_that_an_interrupted_trial_goes_on_at_its_next_step(
        tmp_path, trainer_functions.train_by_hand
    )


@pytest.mark.mpi
def test_two_ranks_leave_in_an_epoch_and_go_on_as_one_process_would(tmp_path) -> None:
    facts = {"python": "trainer_functions:train_by_hand", "world_size": 2, "schedule": ((0, 2),), "until": 2}
    facts |= {"config": {"lr": 0.01}, "training": trainer_cases.Training(batch_size=2)}
    first = written_order(tmp_path / "first", **facts)
    slow = {"TRAINER_STEP_S": "0.2"}
    launch = subprocess.Popen(
        mpi_command(first), env={**ENVIRONMENT, **slow}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    seen = tmp_path / "first" / "scratch" / "seen-1.jsonl"
    eventually(lambda: seen.exists() or launch.poll() is not None, "both train", deadline_s=60)
    launch.send_signal(signal.SIGTERM)
    assert launch.wait(60) == 0
    left = report_of(first)
    assert left.outcome is Outcome.PREEMPTED
    assert left.checkpoint.path.rpartition("/")[2].startswith("epoch-000000-step-")
    second = written_order(tmp_path / "second", resume_from=left.checkpoint.path, **facts)
    status, errors = finished(mpi_command(second))
    assert status == 0, errors
    counts = Counter()
    for folder in ("first", "second"):
        for lines in trainer_cases.seen_by(tmp_path / folder).values():
            counts.update((epoch, number) for epoch, _, numbers in lines for number in numbers)
    every = range(trainer_functions.SAMPLES)
    assert counts == Counter((epoch, number) for epoch in range(2) for number in every), json.dumps(
        left.cause
    )
    same = {name: facts[name] for name in ("config", "training", "schedule", "until")}
    alone, _ = trainer_cases.trained_alone(
        tmp_path / "alone", trainer_functions.train_by_hand, max_epochs=9, seed=second.seed, **same
    )
    for there, here in zip(epochs_of(second), alone.history, strict=True):
        assert there.metrics["val_loss"] == pytest.approx(here.metrics["val_loss"], rel=1e-4)
