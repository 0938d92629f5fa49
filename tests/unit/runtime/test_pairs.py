"""Models as people write them: several with an optimizer each, tied weights, averages beside them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from parsl_rasda.errors import CheckpointError, TrainingError
from parsl_rasda.runtime import load_registered, local_trial
from parsl_rasda.runtime.checkpoints import checkpoint

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(1))


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9)


def adam(parameters, lr):
    return torch.optim.AdamW(parameters, lr)


def gan():
    torch.manual_seed(0)
    return {"g": nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), "d": nn.Linear(3, 1)}


def losses_of(models, x):
    """Return the losses of a GAN; that of the discriminator does not detach, on purpose."""
    noise = torch.stack([x.sum(1), x.prod(1)], 1)
    fake = models["d"](models["g"](noise))
    real = models["d"](x)
    logits = nn.functional.binary_cross_entropy_with_logits
    return {
        "d": logits(real, torch.ones_like(real)) + logits(fake, torch.zeros_like(fake)),
        "g": logits(fake, torch.ones_like(fake)),
    }


def train_gan(*, by_turns=False, dtype=torch.float32, **options):
    """Train a GAN; returns its models and the trial."""
    trial = local_trial({}, **{"epochs": 2, "batch_size": 4, "lr_scaling": "none", **options})
    models = {name: model.to(dtype) for name, model in gan().items()}
    models, _ = trial.prepare(models, {"g": adam, "d": sgd}, lr={"g": 0.01, "d": 0.05})
    for _ in trial.epochs():
        for x in trial.batches(X):
            losses = losses_of(models, x.to(dtype))
            if by_turns:
                name = "d" if trial.step_done % 3 else "g"
                losses = {name: losses[name]}
            trial.step(losses)
        trial.report(val_loss=0.0)
    return models, trial


def weights(models):
    return [p.detach().clone() for model in models.values() for p in model.parameters()]


@pytest.mark.parametrize("by_turns", [False, True])
@pytest.mark.parametrize("reduce", ["exact", "ddp"])
def test_a_gan_trains_as_two_optimizers_of_plain_torch(reduce, by_turns) -> None:
    ours, _ = train_gan(dtype=torch.float64, replicas=2, reduce=reduce, by_turns=by_turns, epochs=1)
    plain = {name: model.double() for name, model in gan().items()}
    optimizers = {"g": adam(plain["g"].parameters(), 0.01), "d": sgd(plain["d"].parameters(), 0.05)}
    for index, batch in enumerate(_steps(replicas=2)):
        names = ("d" if index % 3 else "g",) if by_turns else ("d", "g")
        losses = losses_of(plain, batch.double())
        grads = {
            n: torch.autograd.grad(losses[n], [*plain[n].parameters()], retain_graph=True) for n in names
        }
        for name in names:
            for parameter, grad in zip(plain[name].parameters(), grads[name], strict=True):
                parameter.grad = grad
            optimizers[name].step()
    for found, expected in zip(weights(ours), weights(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def _steps(*, replicas):
    trial = local_trial({}, replicas=replicas, batch_size=4)
    model, _ = trial.prepare(nn.Linear(3, 1), sgd, lr=0.0)
    parts = []
    for _ in trial.epochs():
        for x in trial.batches(X):
            parts.append(x)
            trial.step(model(x).mean())
        trial.report(val_loss=0.0)
    return [torch.cat(parts[i : i + replicas]) for i in range(0, len(parts), replicas)]


@pytest.mark.parametrize("by_turns", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gan_resumes_to_the_same_bits(tmp_path, precision, by_turns) -> None:
    options = {"replicas": 2, "precision": precision, "clip_norm": 1.0, "by_turns": by_turns}
    whole, _ = train_gan(**options)
    train_gan(**options, epochs=1, directory=tmp_path / "first")
    resumed, _ = train_gan(**options, resume_from=tmp_path / "first" / "epoch-000001")
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_the_training_loss_of_several_models_is_the_sum_of_their_losses() -> None:
    trial = local_trial({}, batch_size=48)
    models, _ = trial.prepare(gan(), {"g": sgd, "d": sgd}, lr=0.0)
    for _ in trial.epochs():
        for x in trial.batches(X):
            trial.step(losses_of(models, x))
        trial.report(val_loss=0.0)
    expected = sum(float(loss.detach()) for loss in losses_of(models, X).values())
    assert trial.history[0].metrics["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_each_model_is_back_in_training_mode_for_the_next_epoch_with_what_was_frozen() -> None:
    trial = local_trial({}, epochs=3, batch_size=16)
    models = {"g": gan()["g"], "d": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))}
    models, _ = trial.prepare(models, {"g": sgd, "d": sgd}, lr=0.1)
    models["d"][1].eval()
    for epoch in trial.epochs():
        for x in trial.batches(X):
            modes = [m.training for m in (models["g"], *models["g"], *models["d"])]
            assert modes == [True] * 5 + [False, True]
            trial.step(losses_of(models, x))
        models["g"].eval()  # to draw pictures
        if epoch == 1:
            trial.mean(models["d"](x).square().sum(1) for x in trial.shard(X))
        trial.report(val_loss=0.0)


def test_a_step_trains_the_same_models_with_all_its_batches() -> None:
    trial = local_trial({}, batch_size=4, replicas=2)
    models, _ = trial.prepare(gan(), {"g": sgd, "d": sgd}, lr=0.1)
    next(trial.epochs())
    batches = trial.batches(X)
    trial.step({"d": losses_of(models, next(batches))["d"]})
    losses = {"g": losses_of(models, next(batches))["g"]}
    with pytest.raises(TrainingError, match=r"One step trains \['d'\] and \['g'\].*trial.step_done"):
        trial.step(losses)


@pytest.mark.parametrize(
    ("loss", "found"), [({}, r"losses for \[\]"), ({"x": None}, r"\['x'\]"), (torch.tensor(1.0), "a Tensor")]
)
def test_a_loss_of_no_model_is_refused(loss, found) -> None:
    trial = local_trial({}, batch_size=4)
    trial.prepare(gan(), {"g": sgd, "d": sgd}, lr=0.1)
    next(trial.epochs())
    next(trial.batches(X))
    with pytest.raises(TrainingError, match=found + r".*the models are \['d', 'g'\]"):
        trial.step(loss)


def _sharing():
    layer = nn.Linear(3, 1)
    return {"g": nn.Sequential(layer), "d": layer}


def _twice(parameters, lr):
    return sgd(parameters, lr), sgd(parameters[:1], lr)


@pytest.mark.parametrize(
    ("models", "optimizers", "rates", "words"),
    [
        (_sharing(), {"g": sgd, "d": sgd}, 0.1, "'g' and 'd' share parameters"),
        (gan(), {"g": sgd}, 0.1, r"optimizer has the names \['g'\], but the models are \['d', 'g'\]"),
        (gan(), sgd, 0.1, "there is one optimizer"),
        (gan(), {"g": sgd, "d": sgd}, {"d": 0.1}, r"lr has the names \['d'\]"),
        (nn.Linear(3, 1), {"g": sgd}, 0.1, "There is one model, but the optimizers"),
        ({"keys": nn.Linear(3, 1)}, {"keys": sgd}, 0.1, "cannot have this name"),
        ({}, {}, 0.1, r"The models have the names \[\]"),
        ({"g": nn.SyncBatchNorm(3)}, {"g": sgd}, 0.1, "SyncBatchNorm couples replicas"),
        (nn.Linear(3, 1), _twice, 0.1, "Two of the optimizers have the same parameter"),
        (gan(), {"g": torch.optim.LBFGS, "d": sgd}, 0.1, "LBFGS computes the loss several times"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(models, optimizers, rates, words) -> None:
    with pytest.raises(TrainingError, match=words):
        local_trial({}).prepare(models, optimizers, lr=rates)


def test_several_models_are_not_sharded() -> None:
    with pytest.raises(Exception, match="fsdp with several models"):
        local_trial({}, sharding="fsdp").prepare(gan(), {"g": sgd, "d": sgd}, lr=0.1)


# ------------------------------------------------------------------------ one model, unusual in its parts


class Tied(nn.Module):
    """Input and output share a matrix; one layer takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 5, bias=False)
        self.outer = nn.Linear(3, 5, bias=False)
        self.outer.weight = self.inner.weight
        self.bias = nn.Parameter(torch.zeros(3))
        self.unused = nn.Linear(7, 7)

    def forward(self, x):
        return self.inner(x).tanh() @ self.outer.weight + self.bias


def by_dimension(parameters, lr):
    """Several optimizers for one model, as Muon for matrices and AdamW for the rest."""
    return (
        adam([p for p in parameters if p.ndim == 2], lr),
        sgd([p for p in parameters if p.ndim != 2], lr),
    )


@pytest.mark.parametrize("factory", [sgd, by_dimension])
def test_tied_weights_and_two_optimizers_of_one_model_resume_to_the_same_bits(tmp_path, factory) -> None:
    def run(**options):
        trial = local_trial({}, **{"epochs": 2, "batch_size": 4, "replicas": 2, **options})
        torch.manual_seed(0)
        model, made = trial.prepare(Tied(), factory, lr=0.05)
        for _ in trial.epochs():
            for x in trial.batches(X):
                trial.step((model(x) - x).square().mean())
            trial.report(val_loss=0.0)
        return model, made

    whole, made = run()
    run(epochs=1, directory=tmp_path)
    resumed, _ = run(resume_from=tmp_path / "epoch-000001")
    assert isinstance(made, tuple) == (factory is by_dimension)
    assert resumed.inner.weight is resumed.outer.weight
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    torch.manual_seed(0)
    fresh = Tied()
    assert torch.equal(whole.unused.weight, fresh.unused.weight)
    assert not torch.equal(whole.inner.weight, fresh.inner.weight)
    assert not torch.equal(whole.bias, fresh.bias)


# --------------------------------------------------------------------------------------- what is registered


class Shadow:
    """An average as many libraries write it: numbers, a list of tensors, and nothing of torch.nn."""

    def __init__(self, parameters, decay=0.5):
        self.parameters, self.decay, self.updates = list(parameters), decay, {1: (0, None)}
        self.shadow = [p.detach().clone() for p in self.parameters]

    def update(self):
        self.updates[1] = (self.updates[1][0] + 1, None)
        for mean, parameter in zip(self.shadow, self.parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - self.decay)

    def state_dict(self):
        return {"decay": self.decay, "updates": self.updates, "shadow.0": "x", "shadow": self.shadow}

    def load_state_dict(self, state):
        self.decay, self.updates, self.shadow = state["decay"], state["updates"], list(state["shadow"])


def averaged(**options):
    """Train with two averages of the weights; returns them."""
    trial = local_trial({}, **{"epochs": 2, "batch_size": 4, "replicas": 2, **options})
    torch.manual_seed(0)
    model, _ = trial.prepare(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), sgd, lr=0.05)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    shadow = Shadow(model.parameters())
    trial.register("ema", ema, each_step=lambda: ema.update_parameters(model))
    trial.register("shadow", shadow, each_step=shadow.update)
    for _ in trial.epochs():
        for x in trial.batches(X):
            trial.step((model(x) - x).square().mean())
        trial.report(val_loss=0.0)
    return ema, shadow


def test_averages_are_updated_once_a_step_and_resume_to_the_same_bits(tmp_path) -> None:
    ema, shadow = averaged()
    assert (int(ema.n_averaged), shadow.updates) == (12, {1: (12, None)})  # 2 epochs of 6 steps
    averaged(epochs=1, directory=tmp_path)
    resumed, shadowed = averaged(resume_from=tmp_path / "epoch-000001")
    assert shadowed.updates == shadow.updates
    for found, expected in (
        (list(resumed.state_dict().values()), list(ema.state_dict().values())),
        (shadowed.shadow, shadow.shadow),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_checkpoint_is_read_once_however_much_was_registered(tmp_path, monkeypatch) -> None:
    averaged(epochs=1, directory=tmp_path)
    reads = []
    check = checkpoint.check_files
    monkeypatch.setattr(checkpoint, "check_files", lambda path: reads.append(path) or check(path))
    averaged(resume_from=tmp_path / "epoch-000001")
    assert reads == [tmp_path / "epoch-000001"]


def test_averages_are_found_in_the_checkpoint_after_the_study(tmp_path) -> None:
    ema, _ = averaged(directory=tmp_path)
    place = tmp_path / "epoch-000002"
    model = AveragedModel(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    load_registered(place, "ema", model)
    assert torch.equal(model.module[0].weight, ema.module[0].weight)
    with pytest.raises(CheckpointError, match="nothing was registered as 'swa'; it has ema, shadow"):
        load_registered(place, "swa", model)
    with pytest.raises(CheckpointError, match="what was registered as 'ema' does not fit"):
        load_registered(place, "ema", AveragedModel(nn.Linear(3, 3)))


def test_what_was_registered_must_be_so_again(tmp_path) -> None:
    averaged(epochs=1, directory=tmp_path)
    make = lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))  # noqa: E731
    trial = local_trial({}, epochs=2, batch_size=4, replicas=2, resume_from=tmp_path / "epoch-000001")
    model, _ = trial.prepare(make(), sgd, lr=0.05)
    with pytest.raises(CheckpointError, match="nothing that was registered as 'other'"):
        trial.register("other", AveragedModel(model))
    next(trial.epochs())
    batches = trial.batches(X)
    with pytest.raises(CheckpointError, match=r"it has ema, shadow, for which .* was not called"):
        next(batches)


class _Odd:
    def __init__(self, state):
        self._state = state

    def state_dict(self):
        return self._state

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (object(), "got a object, which has no state_dict"),
        (_Odd({"a": [1, {2}]}), "has a set at 'a.1', which cannot be saved"),
        (_Odd({("a", 1): 1}), "has a tuple, which cannot be saved"),
        (_Odd({"a": torch.eye(2).to_sparse()}), "has a Tensor at 'a', which"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(thing, words) -> None:
    trial = local_trial({})
    with pytest.raises(TrainingError, match="needs a prepared model"):
        trial.register("x", thing)
    trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    with pytest.raises(TrainingError, match=words):
        trial.register("x", thing)


def test_a_name_is_registered_once_and_in_time() -> None:
    trial = local_trial({}, batch_size=4)
    model, _ = trial.prepare(nn.Linear(3, 1), sgd, lr=0.1)
    trial.register("a", _Odd({}))
    with pytest.raises(TrainingError, match="was called twice"):
        trial.register("a", _Odd({}))
    for _ in trial.epochs():
        for x in trial.batches(X):
            with pytest.raises(TrainingError, match="was called late"):
                trial.register("b", _Odd({}))
            trial.step(model(x).mean())
        trial.report(val_loss=0.0)
