"""How a rank ends by an exception: the outcome, and the kind of thing that it saw."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.checkpoints.shared import StoreError
from parsl_rasda.runtime.engine.group import PeersLostError
from parsl_rasda.runtime.engine.rank_device import DeviceMissingError
from parsl_rasda.runtime.process.command import CommandKilledError
from parsl_rasda.runtime.process.end import end_by
from parsl_rasda.types import Fault, Outcome
from tests.unit.runtime.attempts import attempt_in

FAILED, LOST = Outcome.FAILED, Outcome.LOST


class OutOfMemoryError(RuntimeError):
    """As torch.cuda has it."""


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return attempt_in(tmp_path)


@pytest.mark.parametrize(
    ("error", "outcome", "fault"),
    [
        (ValueError("the user's own"), FAILED, Fault.USER_CODE),
        (SpeechlessError(), FAILED, Fault.USER_CODE),
        (KeyboardInterrupt(), FAILED, Fault.USER_CODE),
        (OSError(errno.ENOSPC, "No space left on device"), LOST, Fault.STORAGE),
        (StoreError("s3://x", "TimeoutError"), LOST, Fault.STORAGE),
        (PeersLostError("Connection reset"), LOST, Fault.PEERS_LOST),
        (CommandKilledError("the command was killed by SIGKILL"), LOST, None),
        (InvalidSettingError("ranks", 1, "2"), FAILED, Fault.SETUP),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), FAILED, Fault.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), FAILED, Fault.OUT_OF_MEMORY),
        (MemoryError(), FAILED, Fault.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), FAILED, Fault.DEVICE),
        (RuntimeError("No CUDA GPUs are available"), FAILED, Fault.DEVICE),
        (DeviceMissingError("sees 3 devices", "Install"), FAILED, Fault.DEVICE),
    ],
)
def test_each_kind_is_told_from_the_others(
    attempt: Attempt, error: BaseException, outcome: Outcome, fault: Fault | None
) -> None:
    end = end_by(attempt, error)
    assert (end.outcome, end.fault, end.exception) == (outcome, fault, type(error).__name__)
    assert end.cause
    assert not end.together


@pytest.mark.parametrize(
    ("reduce", "words"), [("exact", "reduce: auto`"), ("auto", "set `training.reduce: ddp`")]
)
def test_torchs_error_for_an_operation_without_a_fixed_order_says_what_to_set(
    tmp_path: Path, reduce: str, words: str
) -> None:
    attempt = attempt_in(tmp_path, training=Training(batch_size=1, reduce=reduce))
    with deterministic(), pytest.raises(RuntimeError) as found:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
    end = end_by(attempt, found.value)
    assert (end.outcome, end.fault) == (FAILED, Fault.USER_CODE)
    assert end.cause.startswith("TrainingError: The operation put_ has no deterministic form on this device")
    assert words in end.cause
    assert "(test_end.py:" in end.cause


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_checkpoint_that_is_gone_is_a_loss_whatever_came_of_it(attempt: Attempt) -> None:
    attempt.lost_origin = "it is damaged"
    end = end_by(attempt, ValueError("so nothing was read"))
    assert (end.outcome, end.cause, end.fault) == (LOST, "it is damaged", Fault.CHECKPOINT)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "Lower `training.batch_size`; more",
        ),
        (
            OutOfMemoryError("HIP out of memory. Process 4711 has 7.50 GiB memory in use. Including"),
            ". Others use this GPU: process 4711 holds 7.50 GiB",
        ),
    ],
)
def test_memory_of_a_gpu_is_told_with_what_to_change(attempt: Attempt, error, advice: str) -> None:
    cause = end_by(attempt, error).cause
    assert str(error) in cause
    assert advice in cause


def test_memory_of_the_node_is_told_as_it_is(attempt: Attempt) -> None:
    assert "batch_size" not in end_by(attempt, MemoryError("of the node")).cause
