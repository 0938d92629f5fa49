"""Kernels in a fixed order: inside forward and backward where sums are exact, and nowhere else."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.engine.determinism import Deterministic

DATA = (torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(16, 1))


class Scattering(torch.autograd.Function):
    """The identity, with `put_` in the backward pass: torch has no deterministic form of it on any device."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, grad):
        flat = torch.arange(grad.numel())
        return torch.zeros_like(grad).put_(flat, grad.reshape(-1))


class Forward(nn.Linear):
    def forward(self, x):
        return super().forward(torch.zeros_like(x).put_(torch.arange(x.numel()), x.reshape(-1)))


class Backward(nn.Linear):
    def forward(self, x):
        return Scattering.apply(super().forward(x))


def settings():
    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def trained(make=nn.Linear, *, fails_in=-1, **options):
    """Train for two epochs; return what was reported, and the settings seen on the way."""
    trial = local_trial({}, **{"epochs": 2, "batch_size": 4, **options})
    seen = {"pass": [], "after": [], "validation": []}
    model, _ = trial.prepare(make(3, 1), torch.optim.SGD, lr=0.01)
    for _ in trial.epochs():
        for number, (x, y) in enumerate(trial.batches(DATA)):
            seen["pass"].append(settings())
            loss = (model(x) - y).square().mean()
            if number == fails_in:
                raise KeyError("the user's own")
            trial.step(loss)
            seen["after"].append(settings())
        for x, _ in trial.shard(DATA):
            model(x)
            seen["validation"].append(settings())
        trial.report(val_loss=0.0)
    return trial.history, seen


BEST_EFFORT = "best effort because here is no deterministic form of put_"
STRICT, LENIENT = (2, False, False), (1, False, False)


@pytest.fixture(autouse=True)
def unusual(monkeypatch):
    """Settings of the user's own, which must stay."""
    before = settings()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    assert settings() == (before[0], True, before[2])


@pytest.mark.parametrize("reduce", ["auto", "exact"])
def test_passes_are_strict_where_sums_are_exact_and_all_else_is_as_it_was(reduce) -> None:
    before = settings()
    history, seen = trained(reduce=reduce, replicas=2)
    assert set(seen["pass"]) == set(seen["validation"]) == {STRICT}
    assert set(seen["after"]) == {before}
    assert [report.exact for report in history] == ["yes", ""]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduce": "ddp"}, "no: reduce is ddp"),
        ({"replicas": 3}, "no: 3 replicas on 1 ranks, not powers of two"),
    ],
)
def test_nothing_is_switched_on_where_sums_are_not_exact(options, words) -> None:
    before = settings()
    history, seen = trained(**options)
    assert set(seen["pass"] + seen["after"] + seen["validation"]) == {before}
    assert history[0].exact == words


@pytest.mark.parametrize("options", [{"reduce": "ddp"}, {"sharding": "fsdp"}])
def test_nothing_is_switched_on_in_a_validation_before_training_either(options) -> None:
    trial = local_trial({}, batch_size=4, **options)
    trial.prepare(nn.Linear(3, 1), torch.optim.SGD, lr=0.01)
    before = settings()
    assert [settings() for _ in trial.shard(DATA)] == [before] * 4


@pytest.mark.parametrize("make", [Forward, Backward])
def test_an_operation_without_a_fixed_order_is_refused_in_words_where_exact_is_demanded(make) -> None:
    with pytest.raises(TrainingError, match=r"operation put_ has no deterministic form.*reduce: auto"):
        trained(make, reduce="exact")


@pytest.mark.parametrize("make", [Forward, Backward])
def test_it_runs_and_is_reported_where_exact_is_only_preferred(make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history, seen = trained(make)
    assert history[0].exact == BEST_EFFORT
    assert seen["pass"][0] == STRICT, "attention is ordered as long as anything is"
    assert set(seen["pass"][1:]) == {LENIENT}


def test_what_shows_only_in_a_later_pass_is_refused_in_words() -> None:
    class Late(Backward):
        passes = 0

        def forward(self, x):
            self.passes += 1
            return super().forward(x) if self.passes > 2 else nn.Linear.forward(self, x)

    with pytest.raises(
        TrainingError, match=r"operation put_ has no deterministic form.*set `training.reduce: ddp`"
    ):
        trained(Late)


@pytest.mark.filterwarnings("ignore:put_ does not have")
@pytest.mark.parametrize("leave_after", [0, 1])
def test_what_runs_in_later_validations_only_marks_the_trial_wherever_it_was_restarted(
    tmp_path, leave_after
) -> None:
    def validate(epochs, **options):
        trial = local_trial({}, epochs=epochs, batch_size=4, **options)
        model, _ = trial.prepare(nn.Linear(3, 1), torch.optim.SGD, lr=0.01)
        for epoch in trial.epochs():
            for x, y in trial.batches(DATA):
                trial.step((model(x) - y).square().mean())
            for number, (x, _) in enumerate(trial.shard(DATA)):
                if (epoch, number) == (2, 1):
                    torch.zeros(4).put_(torch.arange(4), model(x).detach().reshape(-1))
            trial.report(val_loss=0.0)
        return trial.history

    if leave_after:
        validate(leave_after, directory=tmp_path)
        found = validate(3, resume_from=tmp_path / f"epoch-{leave_after:06}")
    else:
        found = validate(3)
    assert [report.exact for report in found] == ["yes", *[""] * (1 - leave_after), BEST_EFFORT]


def test_settings_are_restored_when_the_users_own_code_fails() -> None:
    before = settings()
    with pytest.raises(KeyError):
        trained(fails_in=1)
    assert settings() == before


def test_a_compiled_model_is_best_effort_unless_exact_is_demanded() -> None:
    words = {d: Deterministic(is_demanded=d, is_compiled=True, is_rocm=False).words for d in (True, False)}
    assert words[True] == "yes"
    assert "torch.compile" in words[False]


@pytest.mark.parametrize("is_demanded", [True, False])
def test_attention_on_rocm_which_is_silent_about_its_backward_is_refused_or_told(
    monkeypatch, is_demanded
) -> None:
    """With the CPU's kernel in the place of ROCm's, which this machine has not."""
    monkeypatch.setattr(
        "parsl_rasda.runtime.engine.determinism.UNORDERED_ON_ROCM",
        frozenset({"aten::_scaled_dot_product_flash_attention_for_cpu_backward"}),
    )
    it = Deterministic(is_demanded=is_demanded, is_compiled=False, is_rocm=True)
    q = torch.randn(1, 2, 8, 4, requires_grad=True)
    it.begin("training")
    try:
        with (
            pytest.raises(TrainingError, match="backward on ROCm")
            if is_demanded
            else warnings.catch_warnings()
        ):
            nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    finally:
        it.end()
    assert is_demanded or "attention's backward on ROCm" in it.words
