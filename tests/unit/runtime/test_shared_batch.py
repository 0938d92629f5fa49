"""Replicas that share one batch, as with `scheduler.batch: constant`, on one rank."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.runtime import local_trial

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
