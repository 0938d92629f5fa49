"""What a Trainer is given: the samples of a rank's replicas, and the rate by the study's rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from parsl_rasda.errors import TrainingError
from parsl_rasda.integrations.loop import ReplicaBatches, TrainerLoop, loader_for, loop_of
from parsl_rasda.protocol import Training
from parsl_rasda.runtime import Trial, local_trial
from parsl_rasda.runtime.engine.datasets import Samples
from tests.unit.runtime.attempts import attempt_in

NUMBERS = TensorDataset(torch.arange(48))


def steps_of(trial, ranks, samples, replicas):
    """Return the samples of each step, by replica, whatever the number of ranks."""
    parts = []
    for rank in range(ranks):
        trial.rank = rank
        parts.append(iter(ReplicaBatches(trial, ranks, Samples(samples))))
    each = replicas // ranks
    steps = []
    while first := next(parts[0], None):
        rest = [[next(part) for _ in range(each - (rank == 0))] for rank, part in enumerate(parts)]
        steps.append([first, *(batch for own in rest for batch in own)])
    return steps


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(16, 60), st.integers(1, 5))
def test_each_replica_has_the_same_samples_at_any_number_of_ranks(more, ranks, count, batch_size) -> None:
    replicas = ranks * more
    trial = local_trial({}, replicas=replicas, batch_size=batch_size)
    data = TensorDataset(torch.arange(count))
    steps = steps_of(trial, ranks, data, replicas)
    assert steps == steps_of(trial, 1, data, replicas)
    assert sorted(n for step in steps for batch in step for n in batch) == list(range(count))
    assert all(len(step) == replicas for step in steps)


def test_the_order_is_that_of_our_own_loop() -> None:
    trial = local_trial({}, replicas=2, batch_size=8, reduce="exact", seed=4)
    mine = [numbers.tolist() for (numbers,) in loader_for(trial, NUMBERS)]
    other = local_trial({}, replicas=2, batch_size=8, reduce="exact", seed=4)
    model, _ = other.prepare(torch.nn.Linear(1, 1), torch.optim.SGD, lr=0.0)
    theirs = []
    for _ in other.epochs():
        for (numbers,) in other.batches(NUMBERS):
            theirs.append(numbers.tolist())
            other.step(model(numbers[:, None].float()).mean())
        other.report(val_loss=0.0)
    assert mine == theirs


def test_a_loader_is_taken_over_with_its_collation_and_its_workers() -> None:
    given_loader = DataLoader(NUMBERS, batch_size=3, shuffle=True, collate_fn=len)
    loader = loader_for(local_trial({}, batch_size=12), given_loader)
    assert (list(loader), len(loader)) == ([12] * 4, 4)


def test_what_cannot_be_shared_out_is_refused_in_words() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TrainingError, match="Stream"):
        loader_for(local_trial({}), Stream())
    few = loader_for(local_trial({}, replicas=8, batch_size=1), TensorDataset(torch.arange(3)))
    with pytest.raises(TrainingError, match="too few for 8 replicas"):
        len(few)
    with pytest.raises(TrainingError, match="loader_for"):
        _ = TrainerLoop(local_trial({})).own_batches


def test_a_trial_has_one_loop() -> None:
    trial = local_trial({})
    assert loop_of(trial) is loop_of(trial) is not loop_of(local_trial({}))


@pytest.mark.parametrize(("lr_scaling", "full"), [("auto", 2.0), ("sqrt", 2.0**0.5), ("none", 1.0)])
def test_each_update_has_the_rate_of_schedule_rule_and_warm_up(tmp_path, lr_scaling, full) -> None:
    training = Training(batch_size=12, lr_scaling=lr_scaling, warmup_initial=1.0)
    trial = Trial(attempt_in(tmp_path, training=training))
    loop = loop_of(trial)
    loader = loop.loader(NUMBERS)
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    loop.scale_rates(optimizer)
    loop.begin()
    taken = []
    for _ in range(2):
        for index, _ in enumerate(loader):
            if index % loop.accumulated == 0:
                before = weight.item()
                weight.grad = torch.ones_like(weight)
                optimizer.step()
                taken.append(before - weight.item())
                loop.end_step(lambda place: place.touch())
        schedule.step()
        loop.end_epoch({"val_loss": 1.0}, lambda place: place.touch())
    warm = [0.25 * full, 0.75 * full, full, full]
    assert taken == pytest.approx([0.5 * warm[0], 0.5 * warm[1], 0.05 * warm[2], 0.05 * warm[3]])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005), "schedulers find what they have set"


def test_a_loop_that_ends_by_itself_completes_its_trial(tmp_path) -> None:
    attempt = attempt_in(tmp_path, training=Training(batch_size=12, checkpoint_every=3))
    trial = Trial(attempt)
    loop = loop_of(trial)
    loop.loader(NUMBERS)
    loop.begin()
    assert not loop.end_epoch({"val_loss": 1.0}, lambda place: place.write_text("x"), is_last=True)
    trial.finish()
    assert attempt.is_finished
    (saved,) = attempt.checkpoints
    assert (saved / "given" / "last-1").read_text() == "x"
