"""What PBS says of a job, as its Reference Guide shows ``qstat -f -F json``; there is no PBS here to ask."""

from __future__ import annotations

import json
import time

import pytest

from parsl_rasda.agent.pbs import read_end, read_end_time
from parsl_rasda.agent.slurm import BatchJobEnd

BEGAN = "Thu Jun 15 10:00:00 2023"


def shown(**fields: object) -> str:
    job = {"job_state": "F", "Resource_List": {"walltime": "01:30:00"}, "stime": BEGAN, **fields}
    return json.dumps({"timestamp": 1, "Jobs": {"7.server": job}})


def test_a_job_ends_its_walltime_after_its_start() -> None:
    began = time.mktime((2023, 6, 15, 10, 0, 0, 0, 0, -1))
    assert read_end_time(shown(job_state="R")) == began + 5400


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "qstat: Unknown Job Id",
        "{}",
        shown(stime="tomorrow"),
        shown(Resource_List={}),
        '{"Jobs": {"7": 1}}',
    ],
)
def test_an_answer_without_an_end_has_none(answer: str) -> None:
    assert read_end_time(answer) is None


@pytest.mark.parametrize(
    ("status", "words", "was_taken_back"),
    [
        (-29, "PBS job 7 has ended: its walltime was over", True),
        (271, "PBS job 7 has ended: it was told to end from outside, signal 15", True),
        (143, "PBS job 7 has ended: it was told to end from outside, signal 15", True),
        (265, "PBS job 7 has ended: it was killed, perhaps for its memory, signal 9", False),
        (-27, "PBS job 7 has ended: it used more memory than it may", False),
        (-4, "PBS job 7 has ended: a node failed before or while it ran, exit code -4", True),
        (3, "PBS job 7 has ended: it failed, exit code 3", False),
        (0, "PBS job 7 has ended: it ended by itself", False),
    ],
)
def test_the_exit_status_tells_who_ended_a_job(status: int, words: str, was_taken_back: bool) -> None:
    assert read_end("7", shown(Exit_status=status)) == BatchJobEnd(words, was_taken_back)


@pytest.mark.parametrize("answer", ["", "no", shown(job_state="R"), shown(job_state="Q")])
def test_a_job_that_has_not_ended_has_no_verdict(answer: str) -> None:
    assert read_end("7", answer) is None


def test_a_job_that_was_put_back_into_the_queue_was_taken_back() -> None:
    verdict = read_end("7", shown(job_state="Q", run_count=2))
    assert verdict == BatchJobEnd("PBS job 7 was put back into the queue", was_taken_back=True)
