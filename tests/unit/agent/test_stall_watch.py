"""Ranks that take no step for far too long have stalled; slow ones, and those that wait, have not."""

from __future__ import annotations

import random
from pathlib import Path

from parsl_rasda.agent.stall_watch import StallWatch
from parsl_rasda.protocol import STEPS, JobSpec
from parsl_rasda.types import TrialId


class Watched:
    """A watch over ranks, in a time of its own; looked at every two seconds, as the agent does."""

    def __init__(self, directory: Path, *, attempt: int = 1, interactive: bool = True) -> None:
        self.now = 0.0
        folder = directory / f"attempt-{attempt}"
        folder.mkdir()
        values = {"config": {}, "seed": 0, "metric": "loss", "mode": "min", "epoch": 0, "until": 9}
        self.order = JobSpec(
            study="s", trial=TrialId("0000"), attempt=attempt, directory=str(folder), python="m:f",
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


def test_epochs_that_vary_by_half_are_never_taken_for_a_stall(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(1, 1001):
        ranks = Watched(tmp_path, attempt=number)
        mean_s = draw.choice([0.1, 5.0, 30.0])
        for _ in range(8):
            seconds = mean_s * draw.uniform(0.5, 1.5)
            assert not ranks.lets_pass(seconds)
            ranks.epoch(seconds)
