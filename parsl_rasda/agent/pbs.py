"""What PBS Pro says of a job: when it must end, and who ended it.

To Parsl, every job that PBS has finished is completed, however it ended.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping
from typing import Any

from parsl_rasda.agent.slurm import BatchJobEnd, run_command

_BY_SIGNAL = (256, 128)  # an exit status of a job above one of them is that and the signal: PBS's, a shell's
_CHUNK = re.compile(r"\(([\w-]+)[^():+]*:(?:[^()+]*:)?ngpus=(\d+)")
_UNITS_S = (1, 60, 3600)
# What PBS itself ends a job for. Source: PBS Professional Reference Guide, "Job Exit Status Codes".
_WALLTIME, _MEMORY = -29, -27
_MESSAGES = {
    int(signal.SIGTERM): ("it was told to end from outside", True),
    int(signal.SIGKILL): ("it was killed, perhaps for its memory", False),
}


def ask(job: str) -> BatchJobEnd | None:
    """Return why a job ended, or None if it has not, or PBS does not know it any more."""
    return read_end(job, run_command("qstat", "-x", "-f", "-F", "json", job))


def end_time(job: str) -> float | None:
    """Return when a running job must end [Unix time, s], or None if nothing says so."""
    return read_end_time(run_command("qstat", "-f", "-F", "json", job))


def granted_gpus(job: str) -> dict[str, int] | None:
    """Return the GPUs of each node that a running job was given, or None if PBS does not say."""
    return read_granted_gpus(run_command("qstat", "-f", "-F", "json", job))


def read_granted_gpus(shown: str) -> dict[str, int] | None:
    """Return the GPUs of each node, by the short name of its host, from what ``qstat`` says of a job."""
    granted: dict[str, int] = {}
    for host, count in _CHUNK.findall(str(_job(shown).get("exec_vnode", ""))):
        granted[host] = granted.get(host, 0) + int(count)
    return granted or None


def read_end_time(shown: str) -> float | None:
    """Return a job's start and its walltime, added [Unix time, s], from what ``qstat`` says of it."""
    job = _job(shown)
    try:
        began = time.mktime(time.strptime(job["stime"], "%a %b %d %H:%M:%S %Y"))
        clock = [int(part) for part in reversed(job["Resource_List"]["walltime"].split(":"))]
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return began + sum(n * unit for n, unit in zip(clock, _UNITS_S, strict=False))


def read_end(job: str, shown: str) -> BatchJobEnd | None:
    """Return what ``qstat`` says of a job's end, or None if it still runs, or waits for the first time."""
    fields = _job(shown)
    if fields.get("job_state") == "Q" and fields.get("run_count", 0) not in {0, 1, "0", "1"}:
        return BatchJobEnd(f"PBS job {job} was put back into the queue", was_taken_back=True)
    status = fields.get("Exit_status")
    if fields.get("job_state") != "F" or not isinstance(status, int):
        return None
    words, was_taken_back = _who_ended(status)
    return BatchJobEnd(f"PBS job {job} has ended: {words}", was_taken_back)


def _who_ended(status: int) -> tuple[str, bool]:
    """Return who ended a job, for people, and whether it was taken back."""
    for number in (status - base for base in _BY_SIGNAL if status > base):
        words, was_taken_back = _MESSAGES.get(number, ("it failed", False))
        return f"{words}, signal {number}", was_taken_back
    if status == _WALLTIME:
        return "its walltime was over", True
    if status == _MEMORY:
        return "it used more memory than it may", False
    if status < 0:
        return f"a node failed before or while it ran, exit code {status}", True
    return (f"it failed, exit code {status}", False) if status else ("it ended by itself", False)


def _job(shown: str) -> Mapping[str, Any]:  # JSON
    """Return the one job of an answer, or nothing."""
    try:
        (job,) = json.loads(shown)["Jobs"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return job if isinstance(job, dict) else {}
