"""Ranks that take no step for far too long have stalled; slow ones, and those that wait, have not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from parsl_rasda.agent.stall_watch import StallWatch
from parsl_rasda.protocol import STEPS, EpochReport, JobSpec
from parsl_rasda.types import TrialId


class Watched:
    """A watch over ranks, in a time of its own; looked at every two seconds, as the agent does."""

    def __init__(
        self, directory: Path, *, attempt: int = 1, interactive: bool = True, is_script: bool = False
    ) -> None:
        self.now = 0.0
        folder = directory / "0000" / f"attempt-{attempt}"
        folder.mkdir(parents=True)
        values = {"config": {}, "seed": 0, "metric": "loss", "mode": "min", "epoch": 0, "until": 9}
        self.order = JobSpec(
            study="s", trial=TrialId("0000"), attempt=attempt, directory=str(folder),
            python=None if is_script else "m:f", command=("x",) if is_script else None,
            max_epochs=9, schedule=((0, 1),), world_size=1, interactive=interactive, **values,
        )  # fmt: skip
        self.watch = StallWatch(self.order, lambda: self.now)

    def lets_pass(self, seconds: float) -> bool:
        """Return whether the ranks were found to have stalled meanwhile."""
        end, found = self.now + seconds, False
        while self.now < end:
            self.now = min(end, self.now + 2.0)
            found |= self.watch.stalled_s is not None
        return found

    def epoch(self, seconds: float) -> None:
        self.watch.heard({"op": "epoch", "seconds": seconds})
        self.watch.answered()


def _other_trial(directory: Path, number: int, seconds: float) -> None:
    """Leave what a trial leaves that took so long from its start to its first epoch."""
    folder = directory / f"{number:04}" / "attempt-1"
    folder.mkdir(parents=True)
    order = folder / "order.json"
    order.touch()
    at = order.stat().st_mtime + seconds
    first = EpochReport(TrialId(f"{number:04}"), 1, 1, {"loss": 1.0}, 0.1, None, at, ("n:0",))
    (folder / "epochs.jsonl").write_text(json.dumps(first.to_json()) + "\n", "utf-8")


@pytest.mark.parametrize("is_script", [False, True])
def test_a_first_epoch_has_ten_times_what_others_took_from_their_start(
    is_script: bool, tmp_path: Path
) -> None:
    ranks = Watched(tmp_path, is_script=is_script)
    assert not ranks.lets_pass(1000.0), "nobody has got there"
    _other_trial(tmp_path, 1, 130.0)
    _other_trial(tmp_path, 2, 20.0)
    assert not ranks.lets_pass(250.0)
    assert ranks.lets_pass(100.0)


def test_where_no_trial_has_ever_reported_silence_has_an_end_too(tmp_path: Path) -> None:
    ranks = Watched(tmp_path)
    assert not ranks.lets_pass(5 * 3600.0), "what comes before the first step may take long"
    ranks.watch.heard({"op": "step"})
    assert not ranks.lets_pass(1700.0)
    ranks.watch.heard({"op": "step"})
    assert not ranks.lets_pass(1700.0)
    assert ranks.lets_pass(200.0)
    alone = Watched(tmp_path / "alone", interactive=False)
    (Path(alone.order.directory) / STEPS).touch()
    assert not alone.lets_pass(6 * 3600.0)
    assert alone.lets_pass(3 * 3600.0), "in its file it was seen to take a step once"


def test_ranks_without_a_step_for_ten_epochs_have_stalled_and_not_before(tmp_path: Path) -> None:
    ranks = Watched(tmp_path)
    assert not ranks.lets_pass(10_000.0), "of the first epoch nobody knows how long it takes"
    ranks.epoch(5.0)
    assert not ranks.lets_pass(49.0)
    ranks.watch.heard({"op": "step"})
    assert not ranks.lets_pass(49.0)
    assert ranks.lets_pass(5.0)


def test_short_epochs_have_at_least_stall_after(tmp_path: Path) -> None:
    ranks = Watched(tmp_path)
    ranks.epoch(0.001)
    limit_s = ranks.order.training.stall_after_s
    assert not ranks.lets_pass(limit_s - 1.0)
    assert ranks.lets_pass(4.0)


def test_ranks_that_wait_for_an_answer_and_watchers_that_were_stopped_are_no_stall(tmp_path: Path) -> None:
    ranks = Watched(tmp_path)
    ranks.watch.heard({"op": "epoch", "seconds": 1.0})
    assert not ranks.lets_pass(1000.0), "it is the controller's turn"
    ranks.watch.answered()
    ranks.now += 1000.0  # all of the machine was suspended
    assert not ranks.lets_pass(4.0)


def test_ranks_without_a_channel_show_their_steps_in_a_file(tmp_path: Path) -> None:
    ranks = Watched(tmp_path, interactive=False)
    ranks.epoch(1.0)
    assert not ranks.lets_pass(10.0)
    (Path(ranks.order.directory) / STEPS).touch()
    assert not ranks.lets_pass(10.0)
    assert ranks.lets_pass(10.0)


@pytest.mark.slow
def test_epochs_that_vary_by_half_are_never_taken_for_a_stall(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(1, 1001):
        ranks = Watched(tmp_path, attempt=number)
        mean_s = draw.choice([0.1, 5.0, 30.0])
        for _ in range(8):
            seconds = mean_s * draw.uniform(0.5, 1.5)
            assert not ranks.lets_pass(seconds)
            ranks.epoch(seconds)
