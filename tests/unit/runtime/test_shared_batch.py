"""Replicas that share one batch, as with `scheduler.batch: constant`, on one rank."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

from parsl_rasda.errors import InvalidSettingError, TrainingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.engine.passes import joined

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double()
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]).double() + 0.3
WARNING = "batch normalisation takes its statistics from 4 samples of each replica"


def trained(*, model=None, lr=0.01, **options):
    """Train through the points; returns the trial, the model and the rate and samples of each micro-batch."""
    trial = local_trial({}, **{"replicas": 4, "batches": 1, "batch_size": 16, "epochs": 2, **options})
    torch.manual_seed(0)
    model, optimizer = trial.prepare(model or nn.Linear(3, 1).double(), torch.optim.SGD, lr=lr)
    seen = []
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            seen.append((optimizer.param_groups[0]["lr"], len(x)))
            trial.step((model(x) - y).square().mean())
        trial.report(val_loss=0.0)
    return trial, model, seen


def test_a_step_has_one_batch_of_which_each_replica_takes_its_share_and_the_rate_stays() -> None:
    trial, _, seen = trained(reduce="exact")
    assert (trial.replicas, trial.global_batch_size) == (4, 16)
    assert len(seen) == 2 * 4 * 4, "50 samples are 4 steps of at most 16"
    assert {rate for rate, _ in seen} == {0.01}
    assert max(samples for _, samples in seen) == 4
    assert [report.samples for report in trial.history] == [50, 50]


def test_replicas_that_share_a_batch_train_like_one_that_has_it_alone() -> None:
    alone = trained(replicas=1)[1]
    for reduce in ("exact", "ddp"):
        together = trained(reduce=reduce)[1]
        for ours, theirs in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)  # in another order


def test_replicas_that_cannot_share_a_batch_evenly_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="1 x 18 samples for 4 replicas'; allowed: a multiple of 4"):
        trained(batch_size=18)


def test_a_checkpoint_says_how_large_the_step_was(tmp_path) -> None:
    trained(directory=tmp_path, epochs=1)
    header = tmp_path / "epoch-000001" / "header.json"
    assert (found := json.loads(header.read_text()))["batches"] == 1
    assert found["replicas"] == 4


def test_a_report_that_reads_by_itself_counts_no_samples() -> None:
    trial = local_trial({})
    for _ in trial.epochs():
        trial.report(val_loss=0.0)
    assert [report.samples for report in trial.history] == [None]


@pytest.mark.parametrize(
    ("options", "norm", "is_warned"),
    [
        ({}, nn.BatchNorm1d(3), True),
        ({"batch_size": 32}, nn.BatchNorm1d(3), False),
        ({"batches": 4, "batch_size": 4}, nn.BatchNorm1d(3), False),
        ({}, nn.BatchNorm1d(3).eval(), False),
        ({}, nn.LayerNorm(3), False),
    ],
)
def test_batch_statistics_of_few_samples_are_warned_of_once(options, norm, is_warned) -> None:
    model = nn.Sequential(norm, nn.Linear(3, 1)).double()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trained(model=model, **options)
    assert [str(w.message).startswith(WARNING) for w in told] == [True] * is_warned


# ------------------------------------------------------------------------------------- together in one pass


class Noisy(nn.Linear):
    """Draws something, late in an epoch if it is to."""

    def __init__(self, begin: int) -> None:
        super().__init__(3, 1)
        self.begin, self.calls = begin, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) + (0.0 * torch.rand(1).double() if self.calls > self.begin else 0.0)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def sizes_of(**options):
    return [samples for _, samples in trained(reduce="ddp", epochs=1, **options)[2]]


def test_replicas_go_through_the_model_together_after_the_first_step_of_an_epoch() -> None:
    assert sizes_of() == [4, 3, 3, 3, 13, 12, 12]
    assert sizes_of(batches=2, batch_size=8) == [4, 3, 3, 3, 7, 6, 6, 6, 6, 6]
    assert len(sizes_of(batches=4, batch_size=4)) == 16, "each has a batch of its own"


@pytest.mark.parametrize(
    "model",
    [
        Noisy(0).double(),
        Counting().double(),
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double(),
        nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1)).double(),
    ],
)
@pytest.mark.filterwarnings("ignore:batch normalisation")
def test_what_each_replica_must_compute_by_itself_keeps_them_apart(model) -> None:
    assert len(sizes_of(model=model)) == 16


def test_random_numbers_that_are_drawn_late_are_an_error() -> None:
    with pytest.raises(TrainingError, match="not drawn in the first step of the epoch"):
        sizes_of(model=Noisy(5).double())


def test_together_they_train_the_same_up_to_rounding() -> None:
    (_, together, _), (_, apart, _) = (trained(reduce=reduce, lr=0.1) for reduce in ("ddp", "exact"))
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_batches_that_cannot_be_joined_stay_as_they_are() -> None:
    x, y = torch.zeros(2, 3), torch.ones(2)
    assert [part.shape for part in joined([(x, y), (x, y)])[0]] == [(4, 3), (4,)]
    assert joined([{"x": x}, {"x": x}])[0]["x"].shape == (4, 3)
    for unequal in ([x, torch.zeros(2, 4)], [(x, ["a"]), (x, ["b"])], [x]):
        assert joined(unequal) is unequal
