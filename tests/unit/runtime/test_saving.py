"""Checkpoints are written while training goes on; whoever is told of one finds it whole."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors
from parsl_rasda.runtime.checkpoints.saver import Saver, copied
from parsl_rasda.runtime.trial import Trial
from tests.unit.runtime.attempts import attempt_in

X = torch.ones(8, 1)


def test_one_write_follows_another_and_is_waited_for_as_long_as_one_likes() -> None:
    saver, go, done = Saver(), threading.Event(), []
    saver.start(lambda: (go.wait(60), done.append(1)))
    assert not saver.finish(0.0)
    go.set()
    saver.start(lambda: done.append(2))
    assert done[0] == 1, "the second begins when the first has ended"
    assert saver.finish()
    assert done == [1, 2]


def test_what_goes_wrong_is_raised_once_where_the_write_is_waited_for() -> None:
    def write() -> None:
        raise OSError("disk full")

    saver = Saver()
    saver.start(write)
    with pytest.raises(OSError, match="disk full"):
        saver.finish()
    assert saver.finish()


class Disk(Saver):
    """Is slow at the writes that it is told to be slow at: they end when somebody must wait for them."""

    def __init__(self, slow) -> None:
        super().__init__()
        self.slow, self.waiting = list(slow), None

    def start(self, write) -> None:
        self.finish()
        if self.slow.pop(0):
            self.waiting = write
        else:
            write()

    def finish(self, patience_s=None) -> bool:
        if self.waiting and patience_s is None:
            write, self.waiting = self.waiting, None
            write()
        return self.waiting is None


def trained(directory, slow, every=1):
    """Train on a disk of moods; returns the reports, and the weight that each epoch ended with."""
    with patch("parsl_rasda.runtime.own_trial.Saver", lambda: Disk(slow)):
        trial = local_trial({}, epochs=len(slow), batch_size=4, directory=directory, checkpoint_every=every)
    model, _ = trial.prepare(nn.Linear(1, 1), torch.optim.SGD, lr=0.01)
    weights, named = [], []
    for _ in trial.epochs():
        assert all(Path(place).exists() for place in named[-1:]), "the controller may know no other"
        for (x,) in trial.batches((X,)):
            trial.step(model(x).square().mean())
        weights.append(model.weight.detach().clone())
        trial.report(val_loss=0.0)
        named += [trial.history[-1].checkpoint.path] if trial.history[-1].checkpoint else []
        assert all(Path(place).exists() for place in named[-2:])
    return trial.history, weights


def test_an_epoch_is_reported_before_its_checkpoint_is_whole_and_a_rung_after(tmp_path) -> None:
    history, _ = trained(tmp_path, [True, True, True])
    found = [
        (r.checkpoint and Path(r.checkpoint.path).name, r.checkpoint and r.checkpoint.epoch) for r in history
    ]
    assert found == [(None, None), ("epoch-000001", 1), ("epoch-000003", 3)]


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(1, 2))
def test_every_report_names_what_is_whole_and_holds_the_weights_of_its_epoch(slow, every) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history, weights = trained(folder, slow, every)
        assert history[-1].checkpoint.epoch == len(slow)
        for report in history:
            if report.checkpoint and Path(report.checkpoint.path).exists():
                tensors = read_tensors(Path(report.checkpoint.path), "model.weight")
                assert torch.equal(tensors["model.weight"], weights[report.checkpoint.epoch - 1])
        kept = [path.name for path in Path(folder).glob("epoch-*")]
        assert len(kept) <= 5, "two that the controller has heard of, and three that it has not"
        assert not [name for name in kept if name.endswith(".tmp")]


class Controller:
    """The controller's end of the channel: lets a trial cross its rungs, up to an epoch."""

    is_deaf = False

    def __init__(self, last: int) -> None:
        self.until, self.last = 1, last

    def send(self, op, message=None) -> None:
        """Hear of it."""

    def answer(self, timeout_s, unless):
        self.until += 1
        return {"op": "leave"} if self.until > self.last else {"op": "go", "until": self.until}


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({}, [None, 1, 2]),
        ({"keeps_rungs": True}, [1, 2, 3]),
        ({"keeps_best": True, "metric": "val_loss"}, [1, 2, 3]),
        ({"max_epochs": 3}, [None, 1, 3]),
    ],
)
def test_training_goes_on_at_a_rung_while_its_checkpoint_is_written(tmp_path, spec, named) -> None:
    """Unless just that one is kept, or it is the trial's last."""
    attempt = attempt_in(tmp_path, interactive=True, until=1, **{"max_epochs": 9, **spec})
    attempt.channel = Controller(3)
    with patch("parsl_rasda.runtime.own_trial.Saver", lambda: Disk([True] * 4)):
        trial = Trial(attempt)
    model, _ = trial.prepare(nn.Linear(1, 1), torch.optim.SGD, lr=0.01)
    for _ in trial.epochs():
        for (x,) in trial.batches((X,)):
            trial.step(model(x).square().mean())
        trial.report(val_loss=0.0)
    found = [r.checkpoint and r.checkpoint.epoch for r in trial.history]
    assert found == named
    assert [path.name for path in attempt.checkpoints][-1] == "epoch-000003", "whole before it leaves"


def test_a_copy_does_not_change_with_its_tensor_and_lies_as_it_does() -> None:
    tensor = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    before = tensor.clone()
    copies, wait = copied({"x": tensor})
    wait()
    tensor.zero_()
    assert torch.equal(copies["x"], before)
    assert copies["x"].stride() == before.stride()
