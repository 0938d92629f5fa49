"""A group that cannot be made, whoever tries, and how ranks wait for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.exits import EndedBy, ExitObservations, classify_exit
from parsl_rasda.protocol import JobResult
from parsl_rasda.runtime.engine.group import Group, PeersLostError, look_pause_s, meeting_s, published_address
from parsl_rasda.runtime.engine.setup_errors import (
    GroupSetupError,
    check_interfaces,
    setting_up,
    words_of_backend,
)
from parsl_rasda.runtime.process.end import end_by
from parsl_rasda.types import Blame, Fault, Outcome, Phase
from tests.unit.runtime.attempts import attempt_in

GIB = 2**30
GPU = torch.device("cuda", 0)
# As torch 2.11 with NCCL 2.28 words it.
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {kind} (run with NCCL_DEBUG=INFO "
    "for details), NCCL version 2.28.9\n{name}: System call (e.g. socket, malloc) or external library call "
    "failed or device error. \nLast error:\n{last}\nException raised from create at NCCLUtils.cpp:94 (most "
    "recent call first):\nframe #0: c10::Error::Error"
)
NO_INTERFACE = NCCL.format(
    kind="unhandled system error", name="ncclSystemError", last="Bootstrap : no socket interface found"
)
NO_MEMORY = NCCL.format(
    kind="unhandled cuda error", name="ncclUnhandledCudaError", last="Cuda failure 2 'out of memory'"
)
NO_PEER = NCCL.format(
    kind="remote process exited or there was a network error",
    name="ncclRemoteError",
    last="socketPollConnect: connect to 10.0.0.2<40123> returned Connection refused",
)


def judged(tmp_path: Path, error: BaseException):
    """Return what a rank reports that ends by an error, and how the attempt then counts."""
    attempt = attempt_in(tmp_path)
    attempt.phase = Phase.MET
    end = end_by(attempt, error)
    report = JobResult(
        attempt.spec.trial,
        1,
        end.outcome,
        0,
        end.cause,
        phase=Phase.MET,
        fault=end.fault,
        exception=end.exception,
    )
    return end, classify_exit(ExitObservations(EndedBy.LAUNCH_EXIT, report=report, returncode=1))


def raised(text: str, memory=(GIB, 80 * GIB, GIB)) -> BaseException:
    with pytest.raises(RuntimeError) as plain, setting_up("nccl", torch.device("cpu"), lambda: memory):
        raise dist.DistBackendError(NO_PEER)
    assert type(plain.value) is dist.DistBackendError
    with pytest.raises((GroupSetupError, RuntimeError)) as found, setting_up("nccl", GPU, lambda: memory):
        raise dist.DistBackendError(text)
    return found.value


def test_a_torch_without_the_backend_is_the_sites_fault(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PARSL_RASDA_BACKEND", "nccl")
    with pytest.raises(GroupSetupError, match="was built without NCCL") as found:
        Group(0, 2, torch.device("cpu"), tmp_path, one_node=True)
    end, exit_ = judged(tmp_path, found.value)
    assert end.fault is Fault.SETUP
    assert (exit_.outcome, exit_.blame, exit_.phase) == (Outcome.LOST, Blame.SITE, Phase.MET)
    assert not list(tmp_path.glob("address")), "and nobody waits for anybody"


def test_an_interface_that_the_node_has_not_is_named_beside_those_that_it_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "hsn9")
    with pytest.raises(GroupSetupError, match=r"GLOO_SOCKET_IFNAME is 'hsn9', but this node has .*\blo\b"):
        Group(0, 2, torch.device("cpu"), tmp_path, one_node=False)


@pytest.mark.parametrize(
    ("backend", "value", "is_good"),
    [
        ("gloo", "hsn0", True),
        ("gloo", "hsn", False),
        ("gloo", "hsn0,hsn1", True),
        ("gloo", "hsn0,ib0", False),
        ("nccl", "hsn", True),
        ("nccl", "=hsn", False),
        ("nccl", "=hsn1", True),
        ("nccl", "ib,hsn", True),
        ("nccl", "ib", False),
        ("nccl", "^lo", True),
        ("nccl", "", True),
        ("xccl", "whatever", True),
    ],
)
def test_names_of_interfaces_are_read_as_the_backend_reads_them(backend, value, is_good) -> None:
    environ = {"GLOO_SOCKET_IFNAME": value, "NCCL_SOCKET_IFNAME": value}
    if is_good:
        check_interfaces(backend, environ, {"lo", "hsn0", "hsn1"})
        return
    with pytest.raises(GroupSetupError, match=r"hsn0, hsn1, lo.*site file"):
        check_interfaces(backend, environ, {"lo", "hsn0", "hsn1"})


def test_what_nccl_says_last_is_told_and_is_the_sites_fault(tmp_path) -> None:
    error = raised(NO_INTERFACE)
    assert "last error: Bootstrap : no socket interface found." in str(error)
    assert "frame #0" not in str(error)
    _, exit_ = judged(tmp_path, error)
    assert (exit_.outcome, exit_.blame) == (Outcome.LOST, Blame.SITE)


@pytest.mark.parametrize(("own", "blame"), [(78, Blame.TRIAL), (1, Blame.SLOT)])
def test_a_full_gpu_is_the_fault_of_whoever_fills_it(tmp_path, own, blame) -> None:
    end, exit_ = judged(tmp_path, raised(NO_MEMORY, (GIB // 4, 80 * GIB, own * GIB)))
    assert end.fault is Fault.OUT_OF_MEMORY
    assert f"{own}.00 this rank's own" in end.cause
    assert exit_.blame is blame


def test_another_rank_that_cannot_be_reached_is_lost_contact() -> None:
    assert type(raised(NO_PEER)) is dist.DistBackendError
    assert "Connection refused" in words_of_backend(dist.DistBackendError(NO_PEER))


@pytest.mark.parametrize("words", ["No route to host", "Network is unreachable"])
def test_a_network_without_a_way_to_another_rank_is_lost_contact(words) -> None:
    error = NCCL.format(kind="unhandled system error", name="ncclSystemError", last=f"connect to x: {words}")
    assert type(raised(error)) is dist.DistBackendError


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("HIP error: unspecified launch failure"),
        dist.DistBackendError(
            NCCL.format(
                kind="unhandled cuda error",
                name="ncclUnhandledCudaError",
                last="Cuda failure 719 'unspecified launch failure'",
            )
        ),
        torch.OutOfMemoryError("no memory"),
    ],
)
def test_a_kernel_that_has_failed_before_is_not_the_sites_fault(tmp_path, error) -> None:
    with pytest.raises(RuntimeError) as found, setting_up("nccl", GPU, lambda: (GIB, 80 * GIB, GIB)):
        raise error
    assert found.value is error
    _, exit_ = judged(tmp_path, error)
    assert exit_.blame is not Blame.SITE


def test_a_rank_that_is_alone_says_how_long_it_has_waited(tmp_path) -> None:
    with pytest.raises(PeersLostError, match=r"no address within 0\.05 s"):
        published_address(tmp_path, 2, 0.05)


@given(ranks=st.integers(1, 100_000), waited_s=st.floats(0, 1e4))
def test_ranks_look_less_and_less_often_and_all_together_not_too_often(ranks, waited_s) -> None:
    pause_s = look_pause_s(waited_s, ranks)
    assert ranks < 40 or ranks / pause_s <= 2_000.0 * (1 + 1e-9)
    assert pause_s <= max(0.02, waited_s / 8, ranks / 2_000)
    assert look_pause_s(waited_s + 1.0, ranks) >= pause_s


def test_more_ranks_may_take_longer_to_meet() -> None:
    assert meeting_s(2, 120.0) < 121.0
    assert meeting_s(1_024, 120.0) == pytest.approx(222.4)
