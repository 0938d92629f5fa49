"""Where a batch job stands in its queue: its state, why it waits, when it should start.

Slurm and PBS are asked by their own commands; of other batch systems nothing is known.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from parsl_rasda.agent.slurm import run_command

# Reasons of Slurm's that do not go away by waiting. Source: job_reason_codes of Slurm's documentation.
_OBSTACLES = {
    "DependencyNeverSatisfied": "the job that it depends on did not end as it should",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes jobs and starts none",
    "PartitionNodeLimit": "it asks for more or fewer nodes than its partition allows, or its nodes are down",
    "PartitionTimeLimit": "its walltime is longer than its partition allows",
    "PartitionConfig": "it asks for more than its partition has",
    "BadConstraints": "no node meets its constraint",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "QOSNotAllowed": "its QOS is not allowed here",
    "AccountNotAllowed": "its account is not allowed here",
    "ReservationDeleted": "its reservation is gone",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "JobHoldMaxRequeue": "it was requeued too often, and is held",
}
_PER_JOB = re.compile(r"(Assoc|QOS|Account|User)?M(ax|in)\w*(PerJob|WallDuration|NotSatisfied)\w*")
# Of limits on what runs now (GrpTRESRunMins and others) time makes room again.
_BUDGET = re.compile(r"(Assoc|QOS)Grp(?!\w*Run)\w*Minutes\w*")
_NEVER_IN_PBS = re.compile(r"can never run|queue not started|not in a valid state|held", re.IGNORECASE)
_ASK_AGAIN_S = 60.0
_MOVED_S = 600.0
_FIELDS = ("%i", "%T", "%r", "%S")  # of squeue: id, state, reason, estimated start
_NONE = {"", "None", "N/A", "Unknown", "(null)"}
_PBS_STATES = {"Q": "QUEUED", "H": "HELD", "W": "WAITING", "T": "MOVING", "R": "RUNNING", "E": "EXITING"}


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A batch job that has not ended.

    Attributes:
        state: The batch system's word.
        reason: Why it waits: the batch system's words, or nothing.
        starts_at: When it should start, as the batch system estimates [Unix time, s], or None.
        obstacle: Why it will not start by itself, in words; empty if it only has to wait.
    """

    job: str
    state: str
    reason: str = ""
    starts_at: float | None = None
    obstacle: str = ""


def look_at(provider: str, jobs: Sequence[str], clusters: str = "") -> dict[str, QueuedJob]:
    """Return where jobs stand that have not ended, by id; nothing if their batch system cannot be asked.

    Args:
        provider: Name of Parsl's provider.
        jobs: Ids, as that provider has them; the batch system is asked once for all.
        clusters: Of Slurm, if not the one that this machine belongs to.
    """
    ask = _ASK.get(provider)
    if ask is None or not jobs:
        return {}
    return {found.job: found for found in ask(jobs, clusters_option(clusters))}


def can_be_asked(provider: str, clusters: str = "") -> bool:
    """Return whether a batch system answers from here: then a job that `look_at` does not find has ended."""
    question = _PING.get(provider)
    return question is not None and bool(run_command(*question, *clusters_option(clusters)).strip())


def clusters_option(clusters: str) -> tuple[str, ...]:
    """Return the option that has a command of Slurm's ask other clusters than its own."""
    return (f"--clusters={clusters}",) if clusters else ()


class QueueWatch:
    """Asks a batch system about the pilots of a site that wait: all at once, and at most once a minute."""

    def __init__(
        self,
        provider: str,
        tell: Callable[[str, QueuedJob], None],
        *,
        look: Callable[[str, Sequence[str]], Mapping[str, QueuedJob]] = look_at,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without pilots.

        Args:
            provider: Name of Parsl's provider.
            tell: Called with the label of an executor and what is new of its pilot.
            look: Asks the batch system.
            clock: In [s].
        """
        self._provider, self._tell, self._look, self._clock = provider, tell, look, clock
        self._waiting: dict[str, str] = {}
        self._told: dict[str, QueuedJob] = {}
        self._ask_at = -math.inf

    def see(self, label: str, job: str | None) -> None:
        """Take note of the job of a pilot that waits, or None if it does not; ask if it is time."""
        if job is None:
            self._waiting.pop(label, None)
            return
        is_new = self._waiting.get(label) != job
        self._waiting[label] = job
        if not is_new and self._clock() < self._ask_at:
            return
        self._ask_at = self._clock() + _ASK_AGAIN_S
        found = self._look(self._provider, tuple(self._waiting.values()))
        for name, asked in self._waiting.items():
            queued = found.get(asked)
            if queued is not None and _is_news(self._told.get(name), queued):
                self._told[name] = queued
                self._tell(name, queued)


def _is_news(before: QueuedJob | None, now: QueuedJob) -> bool:
    """Whether people want to be told: an estimate that moves by minutes is none."""
    if before is None or replace(before, starts_at=None) != replace(now, starts_at=None):
        return True
    if before.starts_at is None or now.starts_at is None:
        return before.starts_at != now.starts_at
    return abs(before.starts_at - now.starts_at) > _MOVED_S


def _ask_slurm(jobs: Sequence[str], where: Sequence[str]) -> Iterator[QueuedJob]:
    options = ("--noheader", f"--format={'|'.join(_FIELDS)}", f"--jobs={','.join(jobs)}")
    return read_squeue(run_command("squeue", *where, *options, SLURM_TIME_FORMAT="standard"))


def _ask_pbs(jobs: Sequence[str], _: Sequence[str]) -> Iterator[QueuedJob]:
    return read_qstat(run_command("qstat", "-f", "-F", "json", *jobs), jobs)


_ASK: Mapping[str, Callable[[Sequence[str], Sequence[str]], Iterable[QueuedJob]]] = {
    "SlurmProvider": _ask_slurm,
    "PBSProProvider": _ask_pbs,
}
# Commands that say something wherever a batch system answers.
_PING = {"SlurmProvider": ("sinfo", "--noheader", "--format=%R"), "PBSProProvider": ("qstat", "-B")}


def read_squeue(listing: str) -> Iterator[QueuedJob]:
    """Yield the jobs of a listing whose lines are ``id|state|reason|start``."""
    for line in listing.splitlines():
        fields = line.strip().split("|")
        if len(fields) == len(_FIELDS):
            job, state, reason, start = fields
            reason = "" if reason in _NONE else reason
            is_waiting = state == "PENDING"
            obstacle = obstacle_of(reason) if is_waiting else ""
            yield QueuedJob(job, state, reason, _time(start) if is_waiting else None, obstacle)


def obstacle_of(reason: str) -> str:
    """Return why a job with this reason of Slurm's will not start by itself, in words; or nothing."""
    if known := _OBSTACLES.get(reason):
        return known
    if _PER_JOB.fullmatch(reason):
        return f"it asks for more than a limit allows ({reason})"
    if _BUDGET.fullmatch(reason):
        return f"the computing time of its account is used up ({reason})"
    return ""


def read_qstat(shown: str, jobs: Sequence[str]) -> Iterator[QueuedJob]:
    """Yield the jobs of what ``qstat -f -F json`` shows, under the ids by which they were asked for."""
    with suppress(ValueError, AttributeError, TypeError, KeyError):
        for name, fields in json.loads(shown)["Jobs"].items():
            job = next((asked for asked in jobs if asked.startswith(name) or name.startswith(asked)), name)
            yield _of_pbs(job, fields)


def _of_pbs(job: str, fields: Mapping[str, Any]) -> QueuedJob:  # JSON
    letter = str(fields.get("job_state", ""))
    comment = str(fields.get("comment", ""))
    estimated = fields.get("estimated")
    start = estimated.get("start") if isinstance(estimated, dict) else fields.get("estimated.start")
    obstacle = ""
    if letter == "H":
        obstacle = "it is held; `qrls` lets it go"
    elif letter == "Q" and _NEVER_IN_PBS.search(comment):
        obstacle = comment
    is_waiting = letter in {"Q", "H", "W"}
    when = _time(str(start)) if is_waiting and start is not None else None
    return QueuedJob(job, _PBS_STATES.get(letter, letter), comment if is_waiting else "", when, obstacle)


def _time(text: str) -> float | None:
    """Return a time as batch systems write it [Unix time, s], or None."""
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    with suppress(ValueError):
        return time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))
    return None
