"""Training functions whose ranks do different things, and some that end their trial themselves."""

from __future__ import annotations

import torch
from torch import nn

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)


def _model(width=1):
    return nn.Linear(3, width)


def _prepared(trial, model=None):
    return trial.prepare(model or _model(), torch.optim.SGD, lr=0.01)[0]


def _train(trial, model, data=(X, Y)):
    for x, y in trial.batches(data):
        trial.step(nn.functional.mse_loss(model(x), y))


def mean_on_main(trial):
    model = _prepared(trial)
    for _ in trial.epochs():
        _train(trial, model)
        loss = trial.mean([1.0, 2.0]) if trial.is_main else 0.0
        trial.report(val_loss=loss)


def mean_before_a_step(trial):
    model = _prepared(trial)
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            loss = nn.functional.mse_loss(model(x), y)
            if trial.is_main:
                trial.mean([loss])
            trial.step(loss)
        trial.report(val_loss=0.0)


def mean_without_a_model(trial):
    for _ in trial.epochs():
        trial.report(val_loss=trial.mean([1.0]) if trial.is_main else 0.0)


def report_on_main(trial):
    model = _prepared(trial)
    for _ in trial.epochs():
        _train(trial, model)
        if trial.is_main:
            trial.report(val_loss=0.0)


def own_part_of_the_data(trial):
    model = _prepared(trial)
    n = 16 * (1 + trial.rank)
    for _ in trial.epochs():
        _train(trial, model, (X[:n], Y[:n]))
        trial.report(val_loss=0.0)


def own_model(trial):
    model = _prepared(trial, _model(1 + trial.rank))
    for _ in trial.epochs():
        _train(trial, model)
        trial.report(val_loss=0.0)


def leave_on_one_rank(trial):
    model = _prepared(trial)
    for epoch in trial.epochs():
        _train(trial, model)
        trial.report(val_loss=0.0)
        if epoch == 1 and not trial.is_main:
            break


def leave_after_a_report(trial):
    model = _prepared(trial)
    for epoch in trial.epochs():
        _train(trial, model)
        trial.report(val_loss=trial.mean([0.5]))
        if epoch == 1:
            break


def return_at_the_start_of_an_epoch(trial):
    model = _prepared(trial)
    for epoch in trial.epochs():
        if epoch == 2:
            return
        _train(trial, model)
        trial.report(val_loss=0.5)


def return_after_a_report_without_a_model(trial):
    for epoch in trial.epochs():
        trial.report(val_loss=0.5)
        if epoch == 1:
            return


def leave_in_mid_epoch(trial):
    model = _prepared(trial)
    for epoch in trial.epochs():
        for x, y in trial.batches((X, Y)):
            trial.step(nn.functional.mse_loss(model(x), y))
            if epoch == 1:
                return
        trial.report(val_loss=0.5)
