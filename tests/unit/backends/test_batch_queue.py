"""Where pilots stand in their queues, as Slurm and PBS say it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import pytest

from parsl_rasda.backends.parsl.batch_queue import (
    QueuedJob,
    QueueWatch,
    obstacle_of,
    read_qstat,
    read_squeue,
)


def test_squeue_tells_state_reason_and_estimated_start() -> None:
    listing = (
        "12|PENDING|Priority|2026-11-30T12:00:00\n13|RUNNING|None|2026-11-30T11:00:00\n14|PENDING|None|N/A\n"
    )
    first, second, third = read_squeue(listing)
    assert (first.job, first.state, first.reason, first.obstacle) == ("12", "PENDING", "Priority", "")
    assert first.starts_at == time.mktime((2026, 11, 30, 12, 0, 0, 0, 0, -1))
    assert second == QueuedJob("13", "RUNNING")
    assert third == QueuedJob("14", "PENDING")


@pytest.mark.parametrize(
    "reason",
    [
        "DependencyNeverSatisfied", "PartitionDown", "PartitionTimeLimit", "QOSMaxNodePerUserLimitPerJob",
        "AssocMaxNodePerJobLimit", "QOSMaxWallDurationPerJobLimit", "QOSMinCpuNotSatisfied",
        "AssocGrpCPUMinutesLimit", "QOSGrpBillingMinutes", "JobHeldUser",
    ],
)  # fmt: skip
def test_reasons_that_waiting_does_not_cure_are_told_in_words(reason: str) -> None:
    (job,) = read_squeue(f"1|PENDING|{reason}|N/A")
    assert len(job.obstacle.split()) > 3
    (running,) = read_squeue(f"1|RUNNING|{reason}|N/A")
    assert not running.obstacle


@pytest.mark.parametrize(
    "reason",
    [
        "Priority",
        "Resources",
        "Dependency",
        "QOSMaxJobsPerUserLimit",
        "AssocGrpNodeLimit",
        "AssocGrpCPURunMinutesLimit",
        "QOSGrpGRESRunMinutes",
        "QOSGrpBilling",
        "AssocGrpBilling",
        "BeginTime",
        "Licenses",
    ],
)
def test_reasons_that_time_cures_are_none(reason: str) -> None:
    assert obstacle_of(reason) == ""


def shown(**fields: object) -> str:
    return json.dumps({"Jobs": {"7.server": fields}})


def test_qstat_tells_state_comment_and_estimated_start() -> None:
    start = "Mon Nov 30 12:00:00 2026"
    waits = shown(
        job_state="Q",
        comment="Not Running: Insufficient amount of resource: ngpus",
        estimated={"start": start},
    )
    (job,) = read_qstat(waits, ["7.server.site.org"])
    assert job.job == "7.server.site.org", "the id it was asked for by"
    assert (job.state, job.obstacle) == ("QUEUED", "")
    assert "ngpus" in job.reason
    assert job.starts_at == time.mktime(time.strptime(start, "%a %b %d %H:%M:%S %Y"))


@pytest.mark.parametrize(
    "fields",
    [
        {"job_state": "Q", "comment": "Can Never Run: Insufficient amount of queue resource: ncpus"},
        {"job_state": "Q", "comment": "Not Running: Queue not started."},
        {"job_state": "H"},
    ],
)
def test_what_pbs_will_not_start_is_told(fields: dict[str, str]) -> None:
    (job,) = read_qstat(shown(**fields), ["7.server"])
    assert job.obstacle


@pytest.mark.parametrize("said", ["", "qstat: Unknown Job Id 7", "[]", '{"Jobs": []}', '{"Jobs": {"7": 3}}'])
def test_an_answer_that_is_none_tells_of_no_job(said: str) -> None:
    assert list(read_qstat(said, ["7"])) == []
    assert list(read_squeue(said)) == []


class Queue:
    """A batch system whose answers are set; counts the questions."""

    def __init__(self) -> None:
        self.now, self.questions = 0.0, list[Sequence[str]]()
        self.standing: dict[str, QueuedJob] = {}

    def look(self, provider: str, jobs: Sequence[str]) -> Mapping[str, QueuedJob]:
        self.questions.append(jobs)
        return {job: self.standing[job] for job in jobs if job in self.standing}


def test_a_queue_is_asked_once_a_minute_for_all_pilots_and_only_news_are_told() -> None:
    queue, told = Queue(), list[tuple[str, QueuedJob]]()
    watch = QueueWatch(
        "SlurmProvider", lambda *news: told.append(news), look=queue.look, clock=lambda: queue.now
    )
    queue.standing = {"1": QueuedJob("1", "PENDING"), "2": QueuedJob("2", "PENDING")}
    watch.see("a", "1")
    watch.see("b", "2")
    assert [job.job for _, job in told] == ["1", "2"]
    for second in range(1, 50):
        queue.now = second
        watch.see("a", "1")
        watch.see("b", "2")
    assert queue.questions == [("1",), ("1", "2")], "a new one at once, then no more than once a minute"
    queue.standing["1"] = QueuedJob("1", "PENDING", "PartitionDown", None, "its partition is down")
    queue.now = 200.0
    watch.see("a", "1")
    watch.see("b", "2")
    assert told[2:] == [("a", queue.standing["1"])]
    watch.see("a", None)
    queue.now = 400.0
    watch.see("b", "2")
    assert queue.questions[-1] == ("2",), "one that has started is not asked for"


def test_an_estimate_that_moves_by_minutes_is_no_news() -> None:
    queue, told = Queue(), list[float | None]()
    watch = QueueWatch(
        "SlurmProvider", lambda _, job: told.append(job.starts_at), look=queue.look, clock=lambda: queue.now
    )
    for minute, start in enumerate((None, 1000.0, 1300.0, 4000.0, None)):
        queue.now = minute * 100.0
        queue.standing = {"1": QueuedJob("1", "PENDING", "Priority", start)}
        watch.see("a", "1")
    assert told == [None, 1000.0, 4000.0, None]
