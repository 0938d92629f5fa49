"""What `doctor` says to change: of a launch that failed, a disk, a folder for sockets, a slow network."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_rasda.doctor import probes
from parsl_rasda.doctor.findings import ProbeResult, Rating, environment_findings, launch_finding
from parsl_rasda.doctor.surroundings import network_finding, storage_findings, worker_init_finding
from parsl_rasda.orchestration.events import JobEnded
from parsl_rasda.runtime.site_probe import transport_of
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.types import JobId, Outcome, TrialId


def site(**fields: Any) -> ParslSiteSpec:
    declared = {"name": "s", "provider": {"type": "SlurmProvider"}, "nodes": 2, "gpus_per_node": 2}
    return ParslSiteSpec.model_validate({**declared, "mpi_launcher": "srun", **fields})


def result(
    gb_s: float = 0.0, transport: str = "", *, cause: str = "", exchange_s: float = 0.0
) -> ProbeResult:
    outcome = Outcome.LOST if cause else Outcome.REACHED
    ended = JobEnded(0.0, JobId(TrialId("doctor-0"), 1), outcome, cause)
    ranks = [{"transport": transport, "exchanged_mb": 268.0}] * 4
    return ProbeResult(ended, gb_s, exchange_s, ranks, 1.0)


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("srun: error: Unable to create step for job 7: Invalid generic resource (gres) specification",
         "srun was refused the GPUs of its step"),
        ("exit 1: srun: error: Unable to create step for job 7: More processors requested than permitted",
         "the pilot has fewer cores"),
        ("cannot start 'srun': No such file or directory", "there is no srun on the pilot's PATH"),
        ("exit 127: bash: line 1: srun: command not found", "there is no srun on the pilot's PATH"),
        ("The site says `accelerator: cuda`, but torch 2.13.0+cpu sees 0 such devices",
         "torch there sees no cuda device"),
        ("AssertionError: Torch not compiled with CUDA enabled", "torch there sees no cuda device"),
        ("ModuleNotFoundError: No module named 'parsl_rasda'", "the ranks' Python lacks parsl_rasda"),
        ("Host key verification failed.", "the launcher reaches other nodes by ssh"),
        ("Bootstrap : no socket interface found", "does not exist on the nodes (GLOO_SOCKET_IFNAME)"),
        ("OSError: AF_UNIX path too long", "`export TMPDIR=/tmp` in worker_init"),
        ("[Errno 122] Disk quota exceeded", "a disk or a quota is full"),
        ("srun: unrecognized option '--gpu-bnid'", "srun does not know a word of its command"),
        ("2 ranks started by the launcher, 4 were ordered", "belongs to another MPI"),
        ("exit 1: something else", "look at mpi_launcher (srun) and its log"),
    ],
)  # fmt: skip
def test_causes_of_a_launch_that_failed_are_told_apart(cause: str, advice: str) -> None:
    asked = site(environment={"GLOO_SOCKET_IFNAME": "ib9"})
    finding = launch_finding("1 node", result(cause=cause), 2, asked)
    assert finding.verdict is Rating.BAD
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("accelerator", "version", "verdict"),
    [
        ("cuda", "2.13.0+cu130", Rating.GOOD),
        ("cuda", "2.13.0", Rating.GOOD),
        ("cuda", "2.13.0+cpu", Rating.BAD),
        ("rocm", "2.13.0+cu130", Rating.BAD),
        ("xpu", "2.13.0+rocm7", Rating.BAD),
        ("cpu", "2.13.0+cu130", Rating.GOOD),
        ("cpu", None, Rating.BAD),
        ("none", None, Rating.GOOD),
    ],
)
def test_a_torch_that_was_built_for_something_else_is_found(accelerator, version, verdict) -> None:
    there = {"python": "3.11", "versions": {"torch": version}, "gpus": 2}
    found = {f.what: f for f in environment_findings(site(accelerator=accelerator), there, there)}
    assert found["packages"].verdict is verdict
    assert bool(found["packages"].advice) is (verdict is Rating.BAD)


@pytest.mark.parametrize(
    ("free", "files", "verdict"),
    [
        (10**12, None, Rating.GOOD),
        (10**12, 10**6, Rating.GOOD),
        (5 * 10**9, 10**6, Rating.DOUBTFUL),
        (10**12, 5_000, Rating.DOUBTFUL),
        (10**8, 10**6, Rating.BAD),
        (10**12, 3, Rating.BAD),
    ],
)
def test_space_and_inodes_are_looked_at(free, files, verdict) -> None:
    found = storage_findings({"bytes": free, "files": files, "error": "", "temporary": "/tmp"})
    assert next(iter(found)).verdict is verdict


def test_the_probe_of_a_folder_tells_what_is_free_and_that_it_is_missing(tmp_path, monkeypatch) -> None:
    here = probes.storage(str(tmp_path))
    assert here["bytes"] > 0
    assert here["error"] == ""
    assert probes.storage(str(tmp_path / "nowhere"))["error"] == "No such file or directory"


@pytest.mark.parametrize(("length", "verdict"), [(75, Rating.GOOD), (76, Rating.BAD)])
def test_a_tmpdir_that_leaves_no_room_for_a_sockets_name_is_found(length, verdict) -> None:
    temporary = "/" + "t" * (length - 1)
    *_, finding = storage_findings({"bytes": 10**12, "files": None, "error": "", "temporary": temporary})
    assert finding.what == "TMPDIR"
    assert finding.verdict is verdict


@pytest.mark.parametrize(
    ("fields", "narrow", "wide", "verdict", "reason"),
    [
        ({}, result(200.0), result(90.0, "AWS Libfabric"), Rating.GOOD, ""),
        ({}, result(200.0), result(3.0, "Socket"), Rating.DOUBTFUL, "NCCL goes over TCP"),
        ({}, result(200.0), result(4.0, "IB"), Rating.DOUBTFUL, "NCCL_SOCKET_IFNAME"),
        ({}, result(0.0), result(4.0, "IB"), Rating.GOOD, ""),  # one GPU a node: nothing to compare with
        ({"accelerator": "cpu"}, result(0.6), result(0.4), Rating.GOOD, ""),
        ({"accelerator": "cpu"}, result(0.6), result(0.05), Rating.DOUBTFUL, "(GLOO_SOCKET_IFNAME)"),
    ],
)
def test_a_slow_network_is_a_warning_with_its_likely_reason(fields, narrow, wide, verdict, reason) -> None:
    finding = network_finding(narrow, wide, site(**fields))
    assert finding.verdict is verdict
    assert reason in finding.advice
    assert f"{wide.gb_s:.2f} GB/s between 2 nodes" in finding.found


def test_what_training_exchanges_is_said_with_its_time() -> None:
    finding = launch_finding("1 node", result(100.0, exchange_s=0.0123), 4, site())
    assert finding.found == "4 ranks in 1.0 s, 100.00 GB/s, 268 MB of gradients exchanged in 12 ms"


@pytest.mark.parametrize(
    ("log", "transport"),
    [
        ("n0:1:2 [0] NCCL INFO Using network Socket\n", "Socket"),
        ("NCCL INFO NET/OFI Selected Provider is cxi\nINFO Using network AWS Libfabric\n", "AWS Libfabric"),
        ("NCCL INFO Using network IB\nNCCL INFO Channel 00/0 : 0[0] -> 4[0] [send] via NET/IB/0/GDRDMA\n",
         "IB with GPU direct"),
        ("NCCL INFO Using network IB\nNCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\n", "IB"),
        ("NCCL INFO Channel 01/0 : 0[0] -> 1[0] [send] via NET/Socket/0\n", "Socket"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_transport_is_read_from_what_nccl_says(log: str, transport: str) -> None:
    assert transport_of(log) == transport


def test_what_worker_init_says_to_stderr_is_shown() -> None:
    assert worker_init_finding("\n").verdict is Rating.GOOD
    said = "one\n\ntwo\nthree\nLmod has detected the following error: rocm/9 is unknown\n"
    finding = worker_init_finding(said)
    assert finding.verdict is Rating.DOUBTFUL
    assert finding.found == "two | three | Lmod has detected the following error: rocm/9 is unknown"
