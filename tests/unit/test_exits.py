"""How an attempt ended, by what was seen of its end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.exits import EndedBy, ExitObservations, JobExit, classify_exit
from parsl_rasda.protocol import JobResult
from parsl_rasda.types import Outcome, TrialId

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
    assert classify_exit(seen) == JobExit(outcome, "own words")


@pytest.mark.parametrize("ended_by", [e for e in EndedBy if OUTCOMES[e][0] is PREEMPTED])
def test_what_is_lost_while_it_leaves_was_preempted(ended_by: EndedBy) -> None:
    assert classify_exit(ExitObservations(ended_by, "seen", report=report(LOST))) == JobExit(
        PREEMPTED, "seen"
    )


def test_ranks_whose_worker_died_were_lost_whatever_they_say() -> None:
    seen = ExitObservations(EndedBy.WORKER_LOST, "the worker died", report=report(PREEMPTED))
    assert classify_exit(seen) == JobExit(LOST, "the worker died")


@given(observations)
def test_every_observation_has_an_exit_that_names_a_cause_that_was_seen(seen: ExitObservations) -> None:
    found = classify_exit(seen)
    if seen.report is None or found.cause != seen.report.cause:
        assert found.outcome in {LOST, PREEMPTED}, "only ranks know that they have reached their epoch"
    if seen.report is not None and seen.report.outcome not in {LOST, PREEMPTED}:
        assert found == JobExit(seen.report.outcome, seen.report.cause)
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
