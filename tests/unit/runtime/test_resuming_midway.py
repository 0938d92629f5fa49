"""What first steps have shown is not forgotten where a trial resumes in mid-epoch."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from parsl_rasda.runtime.attempt.attempt import PreemptRequested
from parsl_rasda.runtime.checkpoints.checkpoint import read_header
from parsl_rasda.runtime.trial import Trial
from tests.unit.runtime.attempts import attempt_from
from tests.unit.runtime.test_determinism import BEST_EFFORT, Backward

DATA = (torch.randn(40, 2, generator=torch.Generator().manual_seed(1)),)
EVERY = 5  # steps: how often what a test is about happens


def train(directory, models, losses, *, leave_at=None, replicas=1, **options):
    """Train for an epoch or up to a step; return the reports, or the checkpoint."""
    directory.mkdir(exist_ok=True)
    attempt = attempt_from(directory, replicas=replicas, **options)
    trial = Trial(attempt)
    torch.manual_seed(0)
    made = models()
    several = isinstance(made, dict)
    made, _ = trial.prepare(
        made, dict.fromkeys(made, torch.optim.SGD) if several else torch.optim.SGD, lr=0.1
    )
    try:
        for _ in trial.epochs():
            for (x,) in trial.batches(DATA):
                loss = losses(made, x, is_due=trial.step_done % EVERY == 0)
                if trial.step_done == leave_at:
                    attempt.preempt("the test asked for it")
                trial.step(loss)
            trial.report(val_loss=0.0)
    except PreemptRequested:
        (found,) = directory.glob("epoch-*")
        return found
    return trial.history


def at_once_and_with_a_stop(tmp_path, *given, **options):
    """Return what an epoch at once reports, and one that was stopped in its middle."""
    whole = train(tmp_path / "whole", *given, **options)
    stopped = train(tmp_path / "first", *given, leave_at=2, **options)
    return whole, train(tmp_path / "second", *given, resume_from=stopped, **options)


def by_turns(models, x, *, is_due):
    """Train the generator in each fifth step only."""
    losses = {"d": models["d"](x).mean()}
    return losses | ({"g": -models["d"](models["g"](x)).mean()} if is_due else {})


@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_an_operation_without_an_order_is_known_after_a_restart(tmp_path) -> None:
    def models():
        return {"g": Backward(2, 2), "d": nn.Linear(2, 1)}

    whole, resumed = at_once_and_with_a_stop(tmp_path, models, by_turns)
    assert [r.exact for r in whole] == [r.exact for r in resumed] == [BEST_EFFORT]


@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_passes_are_watched_until_each_model_has_been_trained(tmp_path) -> None:
    def later(models, x, *, is_due):
        return {"d": models["d"](x).mean()} if is_due else {"g": models["d"](models["g"](x)).mean()}

    (report,) = train(tmp_path, lambda: {"g": Backward(2, 2), "d": nn.Linear(2, 1)}, later)
    assert report.exact == BEST_EFFORT


class Counting(nn.Linear):
    """Has a buffer that changes in the passes that are due."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("code", torch.zeros(2))

    def forward(self, x, *, is_due=True):
        if is_due:
            self.code += x.mean(0).detach()
        return super().forward(x) + self.code


@pytest.mark.parametrize("several", [False, True])
def test_buffers_that_change_are_known_after_a_restart(tmp_path, several) -> None:
    def models():
        return {"g": Counting(), "d": nn.Linear(2, 1)} if several else Counting()

    def losses(models, x, *, is_due):
        return (by_turns(models, x, is_due=is_due)) if several else models(x, is_due=is_due).mean()

    whole, resumed = at_once_and_with_a_stop(tmp_path, models, losses)
    assert whole[0].metrics == resumed[0].metrics


def test_buffers_are_watched_until_each_model_has_been_trained(tmp_path) -> None:
    def later(models, x, *, is_due):
        loss = models["d"](x).mean()
        return {"d": loss} if is_due else {"d": loss, "g": -models["d"](models["g"](x)).mean()}

    models = {"g": Counting(), "d": nn.Linear(2, 1)}
    models["d"].register_buffer("still", torch.ones(1))
    train(tmp_path, lambda: models, later)
    assert models["g"].code.any()
    assert torch.equal(models["d"].still, torch.ones(1))


def reentrant(model, x, *, is_due):
    """Use a checkpointed model twice where that is due: then its gradients come twice."""
    for _ in range(2 if is_due else 0):
        x = checkpoint(model, x.requires_grad_(), use_reentrant=True)
    return x.mean() if is_due else model(x).mean()


@pytest.mark.parametrize("reduce", ["exact", "ddp"])
def test_gradients_may_come_twice_in_some_steps_after_a_restart(tmp_path, reduce) -> None:
    attempts = partial(at_once_and_with_a_stop, tmp_path, lambda: nn.Linear(2, 2), reentrant)
    whole, resumed = attempts(replicas=2, reduce=reduce)
    assert whole[0].metrics == resumed[0].metrics


def test_that_gradients_come_twice_is_in_the_checkpoint(tmp_path) -> None:
    for losses, is_so in ((reentrant, True), (lambda model, x, **_: model(x).mean(), False)):
        place = tmp_path / str(is_so)
        stopped = train(place, lambda: nn.Linear(2, 2), losses, leave_at=2, replicas=2)
        assert read_header(stopped)["seen"]["come_twice"] is is_so


def test_a_header_of_an_earlier_version_knows_of_nothing_and_resumes(tmp_path) -> None:
    given = (lambda: nn.Linear(2, 1), lambda model, x, *, is_due: model(x).mean())
    stopped = train(tmp_path / "first", *given, leave_at=2)
    header = stopped / "header.json"
    values = json.loads(header.read_text()) | {"format": 1}  # which has no seal
    assert values.pop("seen")
    header.write_text(json.dumps(values))
    (report,) = train(tmp_path / "second", *given, resume_from=stopped)
    assert report.exact == "yes"
