"""How an attempt ended, by what was seen of its end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.exits import EndedBy, ExitObservations, classify_exit
from parsl_rasda.protocol import JobResult
from parsl_rasda.types import Blame, Fault, Outcome, Phase, TrialId

MPICH_KILLED = """user output
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   EXIT CODE: 9
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
MPICH_ABORTED = MPICH_KILLED.replace("CODE: 9", "CODE: 6").replace(
    "Killed (signal 9)", "Terminated (signal 15)"
)
LOST, PREEMPTED = Outcome.LOST, Outcome.PREEMPTED
# What ended it: the outcome of an attempt that was not told to leave, and of one that was.
OUTCOMES = {
    "launch exit": (LOST, LOST),
    "launch error": (LOST, LOST),
    "storage": (LOST, PREEMPTED),
    "ranks unresponsive": (PREEMPTED, PREEMPTED),
    "ranks stalled": (LOST, LOST),
    "controller": (PREEMPTED, PREEMPTED),
    "controller silent": (PREEMPTED, PREEMPTED),
    "controller closed": (PREEMPTED, PREEMPTED),
    "manager lost": (PREEMPTED, PREEMPTED),
    "worker lost": (LOST, LOST),
    "task silent": (LOST, PREEMPTED),
    "task unclaimed": (LOST, PREEMPTED),
    "not sent": (PREEMPTED, PREEMPTED),
    "pilot lost": (LOST, LOST),
    "pilot ended": (PREEMPTED, PREEMPTED),
    "pilot taken back": (PREEMPTED, PREEMPTED),
    "pilot at walltime": (PREEMPTED, PREEMPTED),
    "pilot released": (PREEMPTED, PREEMPTED),
    "pilot leased": (PREEMPTED, PREEMPTED),
    "site unfit": (PREEMPTED, PREEMPTED),
    "endpoint lost": (LOST, PREEMPTED),
}


def report(outcome: Outcome) -> JobResult:
    return JobResult(TrialId("t0"), 1, outcome, epoch=3, cause="own words")


def outcome_and_cause(seen: ExitObservations) -> tuple[Outcome, str]:
    found = classify_exit(seen)
    return found.outcome, found.cause


reports = st.builds(report, st.sampled_from(Outcome))
observations = st.builds(
    ExitObservations,
    st.sampled_from(EndedBy),
    st.text(),
    was_told=st.booleans(),
    report=st.none() | reports,
    returncode=st.integers(),
    log_tail=st.lists(st.text() | st.sampled_from(MPICH_KILLED.splitlines())).map(tuple),
)


@pytest.mark.parametrize("was_told", [False, True])
@pytest.mark.parametrize("ended_by", EndedBy)
def test_without_a_report_the_outcome_is_that_of_what_ended_it(ended_by: EndedBy, was_told: bool) -> None:
    seen = ExitObservations(ended_by, "it ended", was_told=was_told)
    found = classify_exit(seen)
    assert found.outcome is OUTCOMES[ended_by][was_told]
    if ended_by is not EndedBy.LAUNCH_EXIT:
        assert found.cause == "it ended"


@pytest.mark.parametrize(
    ("own", "ended_by", "was_told", "outcome"),
    [
        (Outcome.REACHED, EndedBy.PILOT_LOST, False, Outcome.REACHED),
        (Outcome.FAILED, EndedBy.CONTROLLER, True, Outcome.FAILED),
        (LOST, EndedBy.LAUNCH_EXIT, False, LOST),
        (PREEMPTED, EndedBy.LAUNCH_EXIT, False, PREEMPTED),
        (PREEMPTED, EndedBy.PILOT_LOST, False, PREEMPTED),
        (PREEMPTED, EndedBy.WORKER_LOST, True, PREEMPTED),
    ],
)
def test_the_ranks_own_report_stands(
    own: Outcome, ended_by: EndedBy, was_told: bool, outcome: Outcome
) -> None:
    seen = ExitObservations(ended_by, "seen", was_told=was_told, report=report(own))
    assert outcome_and_cause(seen) == (outcome, "own words")


@pytest.mark.parametrize("ended_by", [e for e in EndedBy if OUTCOMES[e][0] is PREEMPTED])
def test_what_is_lost_while_it_leaves_was_preempted(ended_by: EndedBy) -> None:
    assert outcome_and_cause(ExitObservations(ended_by, "seen", report=report(LOST))) == (PREEMPTED, "seen")


def test_ranks_whose_worker_died_were_lost_whatever_they_say() -> None:
    seen = ExitObservations(EndedBy.WORKER_LOST, "the worker died", report=report(PREEMPTED))
    assert outcome_and_cause(seen) == (LOST, "the worker died")
    alone = ExitObservations(EndedBy.WORKER_LOST, "the worker died")
    assert {classify_exit(each).blame for each in (seen, alone)} == {Blame.PILOT}, "ranks cannot do that"


@given(observations)
def test_every_observation_has_an_exit_that_names_a_cause_that_was_seen(seen: ExitObservations) -> None:
    found = classify_exit(seen)
    if seen.report is None or found.cause != seen.report.cause:
        assert found.outcome in {LOST, PREEMPTED}, "only ranks know that they have reached their epoch"
    if seen.report is not None and seen.report.outcome not in {LOST, PREEMPTED}:
        assert (found.outcome, found.cause) == (seen.report.outcome, seen.report.cause)
    assert (found.blame is Blame.TRIAL) == (found.outcome is Outcome.FAILED)
    assert classify_exit(replace(seen)) == found


def cause_of_exit(returncode: int, log: str) -> str:
    tail = tuple(line.strip() for line in log.splitlines())
    return classify_exit(ExitObservations(EndedBy.LAUNCH_EXIT, returncode=returncode, log_tail=tail)).cause


@pytest.mark.parametrize(
    ("returncode", "log", "cause"),
    [
        (9, MPICH_KILLED, "a rank died by SIGKILL (exit 9): user output"),
        (15, MPICH_ABORTED, "a rank died by SIGABRT (exit 15)"),
        (11, "x exited on signal 11 (Segmentation fault)", "a rank died by SIGSEGV (exit 11)"),
        (137, "srun: error: n1: task 0: Killed", "a rank died by SIGKILL (exit 137)"),
        (-15, "", "the launcher died by SIGTERM (exit -15)"),
        (1, "a\nb\nc\nd\n", "the ranks ended without a report (exit 1): b | c | d"),
        (0, "", "the ranks ended without a report (exit 0)"),
        (7, "", "the ranks ended without a report (exit 7)"),
    ],
)
def test_an_exit_is_described(returncode: int, log: str, cause: str) -> None:
    assert cause_of_exit(returncode, log).startswith(cause)


def test_an_exit_without_a_log_is_described_too() -> None:
    assert cause_of_exit(-9, "") == "the launcher died by SIGKILL (exit -9)"


@pytest.mark.parametrize("code", [1, 9, 137])
@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some tasks have been OOM Killed.",
        "srun: error: n0: task 0: Out Of Memory",
    ],
)
def test_a_rank_out_of_memory_is_named_whatever_the_exit_code(code: int, line: str) -> None:
    assert cause_of_exit(code, line) == f"a rank ran out of memory (exit {code}): {line}"


def test_the_rules_that_a_launcher_prints_are_left_out() -> None:
    log = "out of resource\n  Binding policy: NONE\n" + "-" * 60 + "\n\n"
    assert cause_of_exit(1, log).endswith("(exit 1): out of resource")


# ------------------------------------------------------------------------------------------ whose fault

OWN_OOM = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has a capacity of 10.00 GiB "
    "of which 1.00 GiB is free. Including non-PyTorch memory, this process has 9.00 GiB memory in use."
)
OTHERS_OOM = OWN_OOM.replace("Including", "Process 4711 has 7.50 GiB memory in use. Including")


@pytest.mark.parametrize(
    ("cause", "blame"),
    [
        ("ValueError: no such layer (u.py:3)", Blame.TRIAL),
        ("ModuleNotFoundError: No module named 'x' (u.py:1)", Blame.TRIAL),
        (OWN_OOM, Blame.TRIAL),
        (OTHERS_OOM, Blame.SLOT),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Blame.SLOT),
        ("RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", Blame.SLOT),
        ("RuntimeError: No CUDA GPUs are available", Blame.SLOT),
        ("AcceleratorError: CUDA error: an illegal memory access was encountered", Blame.UNSURE),
        ("RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:2", Blame.UNSURE),
        ("RuntimeError: HIP error: unspecified launch failure", Blame.UNSURE),
        ("RuntimeError: CUDNN_STATUS_EXECUTION_FAILED", Blame.UNSURE),
        ("InvalidSettingError: ranks of one trial on MIG instances: found 2; allowed: 1", Blame.SITE),
        ("OSError: [Errno 28] No space left on device: '/scratch/x'", Blame.SITE),
        ("OSError: [Errno 122] Disk quota exceeded: '/scratch/x'", Blame.SITE),
        ("DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.", Blame.SITE),
    ],
)
def test_what_an_exception_says_tells_whose_fault_it_was(cause: str, blame: Blame) -> None:
    own = replace(report(Outcome.FAILED), cause=cause)
    found = classify_exit(ExitObservations(EndedBy.LAUNCH_EXIT, report=own))
    assert found.blame is blame
    assert (found.outcome is Outcome.FAILED) == (blame is Blame.TRIAL)


def test_a_missing_input_is_not_the_trials_fault() -> None:
    own = replace(report(Outcome.FAILED), cause="FileNotFoundError: [Errno 2] No such file: '/data/x'")
    seen = ExitObservations(EndedBy.LAUNCH_EXIT, report=own)
    assert classify_exit(seen).blame is Blame.TRIAL
    assert classify_exit(replace(seen, missing_input="/data/x")).blame is Blame.NODE


@pytest.mark.parametrize("ended_by", [EndedBy.LAUNCH_EXIT, EndedBy.LAUNCH_ERROR])
def test_without_any_rank_it_is_never_the_trial(ended_by: EndedBy) -> None:
    found = classify_exit(ExitObservations(ended_by, "no", returncode=1, phase=Phase.NO_RANK))
    assert (found.blame, found.phase) == (Blame.SITE, Phase.NO_RANK)


@pytest.mark.parametrize(("fault", "blame"), [(Fault.STORAGE, Blame.SITE), (Fault.PEERS_LOST, Blame.UNSURE)])
def test_a_fault_that_the_ranks_name_tells_too(fault: Fault, blame: Blame) -> None:
    own = replace(report(LOST), fault=fault)
    assert classify_exit(ExitObservations(EndedBy.LAUNCH_EXIT, report=own)).blame is blame


@given(observations.filter(lambda seen: seen.report is None))
def test_without_a_report_the_trial_is_never_to_blame(seen: ExitObservations) -> None:
    assert classify_exit(seen).blame is not Blame.TRIAL
