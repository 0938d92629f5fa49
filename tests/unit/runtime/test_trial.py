"""A training function's view of its trial, on one rank and without a controller."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from parsl_rasda.errors import CheckpointError, InvalidSettingError, TrainingError
from parsl_rasda.protocol import EpochReport
from parsl_rasda.runtime import local_trial

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9)


def loss_of(model, x, y):
    return (model(x) - y).square().mean()


def trained(
    data=(X, Y), *, factory=sgd, dtype=torch.float32, make=lambda: nn.Linear(3, 1), lr=0.01, **options
):
    """Train a line through points; returns the model and the reports."""
    trial = local_trial({"lr": lr}, **{"epochs": 2, "batch_size": 4, **options})
    torch.manual_seed(0)
    model, _ = trial.prepare(make().to(dtype), factory, lr=lr)
    for _ in trial.epochs():
        for x, y in trial.batches(data):
            trial.step(loss_of(model, x.to(dtype), y.to(dtype)))
        trial.report(
            val_loss=trial.mean(
                [loss_of(model, x.to(dtype), y.to(dtype)).detach() for x, y in trial.shard(data)]
            )
        )
    return model, trial.history


# ------------------------------------------------------------------------------------- correctness


@pytest.mark.parametrize("reduce", ["exact", "ddp"])
@pytest.mark.parametrize("factory", [sgd, torch.optim.AdamW])
def test_replicas_train_like_one_large_batch_of_plain_torch(reduce, factory) -> None:
    model, _ = trained(
        factory=factory, dtype=torch.float64, replicas=4, reduce=reduce, lr_scaling="none", epochs=1
    )
    torch.manual_seed(0)
    plain = nn.Linear(3, 1).double()
    optimizer = factory(plain.parameters(), 0.01)
    for x, y in _steps_of_epoch(replicas=4, batch_size=4):
        optimizer.zero_grad()
        loss_of(plain, x.double(), y.double()).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def _steps_of_epoch(*, replicas, batch_size):
    """Collect the samples of each step from a trial that does not learn."""
    trial = local_trial({}, replicas=replicas, batch_size=batch_size)
    model, _ = trial.prepare(nn.Linear(3, 1), sgd, lr=0.0)
    steps, parts = [], []
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            parts.append((x, y))
            trial.step(loss_of(model, x, y))
            if len(parts) == replicas:
                steps.append(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
                parts = []
        trial.report(val_loss=0.0)
    return steps


@pytest.mark.parametrize("reduce", ["exact", "ddp"])
def test_running_statistics_are_the_mean_over_the_replicas(reduce) -> None:
    trial = local_trial({}, replicas=2, batch_size=4, reduce=reduce)
    model, _ = trial.prepare(nn.BatchNorm1d(3), sgd, lr=0.0)
    seen = []
    for _ in trial.epochs():
        for (x,) in trial.batches((X[:8],)):
            seen.append(x)
            trial.step(model(x).sum())
        trial.report(val_loss=0.0)
    expected = torch.stack([0.1 * x.mean(0) for x in seen]).mean(0)
    torch.testing.assert_close(model.running_mean, expected)
    assert int(model.num_batches_tracked) == 1


def test_parameters_that_take_no_part_stay_as_they_are() -> None:
    class Half(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.unused = nn.Parameter(torch.ones(2))

    for reduce in ("exact", "ddp"):
        model, _ = trained(
            make=Half,
            factory=lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.5),
            replicas=2,
            reduce=reduce,
        )
        assert model.unused.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("reduce", ["exact", "ddp"])
def test_what_is_thawed_later_is_trained_from_then_on(reduce) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    trial = local_trial({}, epochs=2, replicas=2, batch_size=4, reduce=reduce)
    trial.prepare(model, lambda _, lr: torch.optim.SGD(model.parameters(), lr), lr=0.01)
    for epoch in trial.epochs():
        model[0].requires_grad_(epoch > 0)
        for index, (x, y) in enumerate(trial.batches((X[:16], Y[:16]))):
            if index in {0, 2}:
                before, expected = model[0].weight.detach().clone(), torch.zeros(2, 3)
            if epoch:
                expected += torch.autograd.grad(loss_of(model, x, y), model[0].weight)[0] / 2
            trial.step(loss_of(model, x, y))
            if index in {1, 3}:
                torch.testing.assert_close(model[0].weight, before - 0.02 * expected)
        trial.report(val_loss=0.0)


def test_an_optimizer_of_parameters_outside_the_model_is_refused() -> None:
    stray = nn.Parameter(torch.zeros(1))
    with pytest.raises(TrainingError, match="1 parameters that are not of the model"):
        local_trial({}).prepare(nn.Linear(3, 1), lambda p, lr: torch.optim.SGD([*p, stray], lr), lr=0.1)


def test_an_optimizer_that_gets_another_group_later_is_refused() -> None:
    trial = local_trial({}, batch_size=4)
    _, optimizer = trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    next(trial.epochs())
    with pytest.raises(TrainingError, match="another number of groups"):
        next(trial.batches((X, Y)))


def test_gradients_are_clipped_once_a_step() -> None:
    trial = local_trial({}, replicas=2, batch_size=4, lr_scaling="none")
    model, _ = trial.prepare(nn.Linear(3, 1, bias=False), torch.optim.SGD, lr=1.0, clip_norm=0.125)
    before = model.weight.detach().clone()
    for _ in trial.epochs():
        for x, y in trial.batches((X[:8], Y[:8])):
            trial.step(loss_of(model, x, y) * 1000)
        trial.report(val_loss=0.0)
    assert (model.weight - before).norm().item() == pytest.approx(0.125, rel=1e-4)


def test_the_rate_follows_replicas_warm_up_schedule_and_group_ratios() -> None:
    trial = local_trial({}, epochs=2, replicas=2, batch_size=25, warmup_initial=1.0)
    model = nn.Linear(3, 1)
    rates = []

    def factory(_parameters, lr):
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": lr / 10}]
        return torch.optim.SGD(groups, lr)

    _, optimizer = trial.prepare(model, factory, lr=0.5, schedule=lambda position: 1.0 - position / 4)
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            trial.step(loss_of(model, x, y))
            rates.append([group["lr"] for group in optimizer.param_groups])
        trial.report(val_loss=0.0)
    full = 0.5 * (1 - 0.5 / 4) * 2 * 0.5  # the first step ends a warm-up of one epoch half-way
    assert rates[0] == pytest.approx([full, full / 10])
    assert rates[2] == pytest.approx([1.0 * (1 - 1.5 / 4), 0.1 * (1 - 1.5 / 4)])


@pytest.mark.parametrize(("rule", "factor"), [(lambda replicas: 0.5 + replicas, 4.5), (None, 4.0)])
def test_a_rule_of_the_users_own_scales_the_rate(rule, factor) -> None:
    trial = local_trial({}, replicas=4, batch_size=4)
    model, optimizer = trial.prepare(nn.Linear(3, 1), sgd, lr=0.5, lr_scaling=rule)
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            trial.step(loss_of(model, x, y))
        trial.report(val_loss=0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * factor)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_too_and_returns_full_precision(precision) -> None:
    model, history = trained(precision=precision, replicas=2, epochs=6)
    assert history[-1].metrics["val_loss"] < history[0].metrics["val_loss"]
    assert model(X).dtype is torch.float32


# ----------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("factory", [sgd, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adagrad])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_trial_ends_with_the_same_bits(tmp_path, factory, precision) -> None:
    whole, _ = trained(factory=factory, precision=precision, epochs=3, replicas=2)
    trained(factory=factory, precision=precision, epochs=1, replicas=2, directory=tmp_path)
    resumed, _ = _resumed(tmp_path / "epoch-000001", factory, precision)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def _resumed(checkpoint, factory, precision):
    return trained(
        factory=factory, precision=precision, epochs=3, replicas=2, resume_from=checkpoint,
        directory=checkpoint.parent / "second",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["optimizer", "numbers", "epoch", "replicas"])
def test_a_header_without_what_is_needed_of_it_is_named(tmp_path, name) -> None:
    trained(epochs=1, replicas=2, directory=tmp_path)
    header = tmp_path / "epoch-000001" / "header.json"
    values = json.loads(header.read_text()) | {"format": 1}  # which has no seal
    header.write_text(json.dumps({key: value for key, value in values.items() if key != name}))
    with pytest.raises(CheckpointError, match=name):
        _resumed(tmp_path / "epoch-000001", sgd, "fp32")


def test_another_optimizer_cannot_take_up_the_state(tmp_path) -> None:
    trained(epochs=1, directory=tmp_path)
    with pytest.raises(CheckpointError, match="it holds the state of SGD, not of AdamW"):
        _resumed(tmp_path / "epoch-000001", torch.optim.AdamW, "fp32")


def test_the_two_newest_checkpoints_are_kept(tmp_path) -> None:
    trained(epochs=5, directory=tmp_path)
    kept = sorted(p.name for p in tmp_path.glob("epoch-*"))
    assert kept[-2:] == ["epoch-000004", "epoch-000005"]
    assert len(kept) <= 3, "one more if a slow disk made the report before the last name an older one"


def test_rungs_are_saved_however_rarely_the_study_asks(tmp_path) -> None:
    _, history = trained(epochs=3, checkpoint_every=10, directory=tmp_path)
    assert [bool(report.checkpoint) for report in history] == [False, False, True]


# ------------------------------------------------------------------------------------------ reports


def test_reports_are_on_disk_with_the_training_loss(tmp_path) -> None:
    _, history = trained(directory=tmp_path)
    lines = (tmp_path / "epochs.jsonl").read_text().splitlines()
    assert [EpochReport.from_json(json.loads(line)) for line in lines] == list(history)
    assert history[0].metrics.keys() == {"val_loss", "train_loss"}
    assert [r.epoch for r in history] == [1, 2]


def test_not_a_number_is_a_metric() -> None:
    trial = local_trial({})
    for _ in trial.epochs():
        trial.report(val_loss=math.nan)
    assert math.isnan(trial.history[0].metrics["val_loss"])


def test_losses_that_diverge_both_ways_are_not_a_number() -> None:
    trial = local_trial({}, replicas=2, batch_size=4)
    model, _ = trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    for _ in trial.epochs():
        for sign, (x, y) in zip((1, -1), trial.batches((X[:8], Y[:8])), strict=True):
            trial.step(loss_of(model, x, y) * sign * math.inf)
        trial.report(val_loss=1.0)
    assert math.isnan(trial.history[0].metrics["train_loss"])


# --------------------------------------------------------------------------------------------- mean

values = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60)


@given(values, st.randoms(use_true_random=False))
def test_the_mean_is_exact_whatever_the_order_and_grouping(numbers, shuffler: random.Random) -> None:
    trial = local_trial({})
    exact = float(sum(map(Fraction, numbers), Fraction(0))) / len(numbers)
    shuffled = list(numbers)
    shuffler.shuffle(shuffled)
    cut = shuffler.randrange(len(shuffled) + 1)
    grouped = [torch.tensor(shuffled[:cut], dtype=torch.float64), np.array(shuffled[cut:])]
    assert trial.mean(numbers) == exact
    assert trial.mean(part for part in grouped) == exact


def test_the_mean_of_what_diverged_is_not_a_number_or_infinite() -> None:
    trial = local_trial({})
    assert math.isnan(trial.mean(torch.tensor([1.0, math.nan])))
    assert math.isnan(trial.mean(torch.tensor([math.inf, -math.inf])))
    assert trial.mean(torch.tensor([math.inf, 1.0])) == math.inf


@pytest.mark.parametrize("number", [0.5, torch.tensor(0.5), np.float64(0.5)])
def test_the_mean_of_one_rank_is_refused(number) -> None:
    with pytest.raises(TrainingError, match="the mean of this rank alone"):
        local_trial({}).mean(number)


# --------------------------------------------------------------------------------------------- data


class Pairs(Dataset):
    """Samples one by one, with randomness of their own."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.rand(()), Y[index]


class Shards:
    """Samples many at once."""

    def __len__(self) -> int:
        return len(X)

    def read(self, indices):
        return X.numpy()[indices], Y.numpy()[indices]


def weights(data, **options):
    model, _ = trained(data, **options)
    return [p.tolist() for p in model.parameters()]


@pytest.mark.parametrize(
    "data", [TensorDataset(X, Y), Shards(), [X.numpy(), Y.numpy()]], ids=["torch", "read", "numpy"]
)
def test_all_kinds_of_data_sets_give_the_same(data) -> None:
    assert weights(data) == weights((X, Y))


def test_processes_that_read_ahead_change_nothing() -> None:
    def with_workers(workers):
        trial = local_trial({}, replicas=2, batch_size=4)
        model, _ = trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
        batches = []
        for _ in trial.epochs():
            for x, y in trial.batches(Pairs(), workers=workers):
                batches.append(x)
                trial.step(model(x).sum() * 0 + y.sum() * 0)
            trial.report(val_loss=0.0)
        return torch.cat(batches)

    assert torch.equal(with_workers(0), with_workers(2))


@pytest.mark.parametrize(("data", "found"), [(5, "int"), ((X, Y[:3]), "lengths"), (iter([]), "iterator")])
def test_what_cannot_be_shared_by_replicas_is_refused(data, found) -> None:
    with pytest.raises(TrainingError, match=found):
        trained(data)


# ------------------------------------------------------------------------------------------- misuse


def prepared(**options):
    trial = local_trial({}, batch_size=4, **options)
    model, _ = trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    return trial, model


def test_a_batch_without_a_step_is_an_error() -> None:
    trial, _ = prepared()
    next(trial.epochs())
    with pytest.raises(TrainingError, match="left without an update"):
        list(trial.batches((X, Y)))


@pytest.mark.parametrize("done", [1, 3])
def test_batches_that_are_left_early_are_an_error(done) -> None:
    trial, model = prepared(replicas=2)
    next(trial.epochs())
    for (x, y), _ in zip(trial.batches((X, Y)), range(done), strict=False):
        trial.step(loss_of(model, x, y))
    with pytest.raises(TrainingError, match=f"left after {done // 2} of 7 steps"):
        trial.report(val_loss=0.0)


def test_a_step_without_a_batch_is_an_error() -> None:
    trial, model = prepared()
    with pytest.raises(TrainingError, match="without a batch"):
        trial.step(loss_of(model, X, Y))


def test_a_loss_per_sample_is_not_a_loss() -> None:
    trial, model = prepared()
    epochs = trial.epochs()
    next(epochs)
    x, y = next(trial.batches((X[:4], Y[:4])))
    with pytest.raises(TrainingError, match=r"shape \(4, 1\)"):
        trial.step((model(x) - y).square())


def test_calls_at_the_wrong_time_say_so() -> None:
    trial, _ = prepared()
    with pytest.raises(TrainingError, match="outside an epoch"):
        trial.report(val_loss=1.0)
    with pytest.raises(TrainingError, match="outside an epoch"):
        next(iter(trial.batches((X, Y))))
    with pytest.raises(TrainingError, match="twice"):
        trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    for call in (
        lambda t: t.step(torch.zeros(())),
        lambda t: next(t.shard((X, Y))),
        lambda t: next(t.batches((X, Y))),
    ):
        with pytest.raises(TrainingError, match="needs a prepared model"):
            call(local_trial({}))


def test_synchronised_batch_norm_is_refused() -> None:
    with pytest.raises(TrainingError, match="SyncBatchNorm couples replicas"):
        local_trial({}).prepare(nn.SyncBatchNorm(3), sgd, lr=0.1)


class SparseLookup(nn.Module):
    """An embedding whose layer does not show that its gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 1))

    def forward(self, index):
        return nn.functional.embedding(index, self.table, sparse=True)


def test_sparse_gradients_are_refused_on_one_rank_too(tmp_path) -> None:
    with pytest.raises(TrainingError, match="embedding '0' is sparse"):
        local_trial({}).prepare(nn.Sequential(nn.Embedding(3, 1, sparse=True)), sgd, lr=0.1)
    trial = local_trial({}, epochs=1, batch_size=2, directory=tmp_path)
    model, _ = trial.prepare(SparseLookup(), sgd, lr=0.1)
    for _ in trial.epochs():
        for (index,) in trial.batches((torch.arange(4),)):
            with pytest.raises(TrainingError, match="'table' is sparse"):
                trial.step(model(index).square().mean())
            return


def test_layers_without_a_shape_are_refused() -> None:
    with pytest.raises(TrainingError, match="shape from the first batch"):
        local_trial({}).prepare(nn.Sequential(nn.LazyLinear(3)), sgd, lr=0.1)


@pytest.mark.parametrize(
    ("option", "value", "replicas"),
    [("precision", "fp8", 1), ("reduce", "sum", 1), ("reduce", "exact", 3), ("lr_scaling", "x", 1)],
)
def test_settings_that_cannot_be_are_refused(option, value, replicas) -> None:
    with pytest.raises(InvalidSettingError, match=option):
        trained(replicas=replicas, **{option: value})


def test_replicas_that_are_no_power_of_two_are_reduced_plainly() -> None:
    _, history = trained(replicas=3, epochs=4)
    assert history[-1].metrics["val_loss"] < history[0].metrics["val_loss"]


# ----------------------------------------------------------------- what others do, refused in words


@pytest.mark.parametrize(
    "write",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1),
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=9),
        lambda optimizer: optimizer.param_groups[0].update(lr=0.5),
    ],
    ids=["StepLR", "LinearLR", "OneCycleLR", "by hand"],
)
def test_a_rate_that_somebody_else_writes_is_refused(write) -> None:
    trial = local_trial({}, epochs=3, batch_size=16)
    model, optimizer = trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    scheduler = write(optimizer)

    def train() -> None:
        for _ in trial.epochs():
            for x, y in trial.batches((X, Y)):
                trial.step(loss_of(model, x, y))
            if scheduler is not None:
                scheduler.step()
            trial.report(val_loss=0.0)

    with pytest.raises(TrainingError, match=r"learning rate.*schedule="):
        train()
    assert trial.epoch == 0, "said before anything is reported"


@pytest.mark.parametrize("accelerator_lr", [0.1, torch.tensor(0.1)])
def test_a_rate_that_nobody_writes_is_accepted(accelerator_lr) -> None:
    trial = local_trial({}, epochs=2, batch_size=16, warmup_initial=0.5)
    model, _ = trial.prepare(
        nn.Linear(3, 1),
        lambda p, _: torch.optim.SGD(p, accelerator_lr),
        lr=0.1,
        schedule=lambda t: 1 / (1 + t),
    )
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            trial.step(loss_of(model, x, y))
        trial.report(val_loss=0.0)
    assert trial.epoch == 2


@pytest.mark.parametrize(
    ("loss", "words"),
    [(None, "loss is None"), (0.5, "a float"), (torch.tensor(0.5), "no gradient")],
)
def test_what_is_no_loss_is_refused_in_words(loss, words) -> None:
    trial, _ = prepared()
    next(trial.epochs())
    next(trial.batches((X, Y)))
    with pytest.raises(TrainingError, match=words):
        trial.step(loss)


@pytest.mark.parametrize(
    ("model", "factory", "words"),
    [
        (nn.DataParallel(nn.Linear(3, 1)), sgd, "DataParallel"),
        (nn.Sequential(nn.DataParallel(nn.Linear(3, 1))), sgd, "DataParallel"),
        (nn.Linear(3, 1), torch.optim.LBFGS, "closure"),
        (nn.Linear(3, 1), lambda _p, _lr: None, "NoneType"),
        (lambda x: x, sgd, "not an nn.Module"),
    ],
)
def test_models_and_optimizers_that_cannot_be_are_refused_in_words(model, factory, words) -> None:
    with pytest.raises(TrainingError, match=words):
        local_trial({}).prepare(model, factory, lr=0.1)
