"""Ranks that do different things are told so, once and in words; a function may end its trial itself."""

from __future__ import annotations

import pytest
from rank_launch import epochs_of, finished, mpi_command, report_of, written_order

from parsl_rasda.protocol import Training
from parsl_rasda.types import Fault, Outcome

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]


def run(tmp_path, function, *, reduce="auto", world_size=2, **changes):
    training = Training(batch_size=4, reduce=reduce, **changes)
    order = written_order(
        tmp_path,
        python=f"unequal_functions:{function}",
        world_size=world_size,
        schedule=((0, 2),),
        training=training,
    )
    return order, finished(mpi_command(order))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            "mean_on_main",
            ("rank 0 is in trial.mean (unequal_functions.py:", "rank 1 is in trial.report (uneq"),
        ),
        ("mean_without_a_model", ("rank 0 is in trial.mean", "rank 1 is in trial.report")),
        ("report_on_main", ("without trial.report(...)", "this is rank 1")),
        ("own_part_of_the_data", ("of 16 samples", "of 32 samples", "trial.batches")),
        ("own_model", ("trial.prepare of a Linear with 4 parameters", "with 8 parameters")),
        ("leave_on_one_rank", ("rank 0 is in the end of an epoch", "rank 1 is in the end of the training f")),
    ],
)
def test_ranks_that_do_different_things_are_told_so(tmp_path, function, words) -> None:
    order, (status, log) = run(tmp_path, function)
    report = report_of(order)
    assert status != 0
    assert (report.outcome, report.fault) == (Outcome.FAILED, Fault.USER_CODE), log
    for word in words:
        assert word in report.cause
    assert "SIGABRT" not in log


@pytest.mark.parametrize(
    "changes", [{"reduce": "exact"}, {"reduce": "ddp"}, {"sharding": "fsdp"}], ids=["exact", "ddp", "fsdp"]
)
def test_a_rank_that_waits_in_a_step_for_others_is_found(tmp_path, changes) -> None:
    order, (_, log) = run(tmp_path, "mean_before_a_step", **changes)
    report = report_of(order)
    assert (report.outcome, report.fault) == (Outcome.FAILED, Fault.USER_CODE), log
    assert "rank 0 is in trial.mean (unequal_functions.py:" in report.cause
    assert "rank 1 is in trial.step (unequal_functions.py:" in report.cause


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    "function",
    ["leave_after_a_report", "return_at_the_start_of_an_epoch", "return_after_a_report_without_a_model"],
)
def test_a_function_that_leaves_after_a_report_has_ended_its_trial(tmp_path, function, world_size) -> None:
    order, (status, log) = run(tmp_path, function, world_size=world_size)
    report = report_of(order)
    assert status == 0, log
    assert (report.outcome, report.epoch, report.finished) == (Outcome.REACHED, 2, True)
    assert report.checkpoint is not None
    assert report.checkpoint.epoch == 2
    assert [epoch.epoch for epoch in epochs_of(order)] == [1, 2]


def test_a_function_that_leaves_in_mid_epoch_without_a_checkpoint_has_failed(tmp_path) -> None:
    order, _ = run(tmp_path, "leave_in_mid_epoch", checkpoint_every=9)
    report = report_of(order)
    assert report.outcome is Outcome.FAILED
    assert "in the middle of the next" in report.cause
