"""What Slurm says of a job that has ended, without its accounting: sites often have that switched off.

`squeue` forgets a job at its end, and Parsl then believes that it was completed. `scontrol` remembers
it for some minutes (``MinJobAge``). A job's environment does not hold its end before Slurm 22.05.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

_TIMEOUT_S = 10.0
_FIELD = re.compile(r"\b(JobState|Reason|ExitCode|Restarts|EndTime)=(\S+)")
_NODES = re.compile(r"\bNodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)")
_GPUS = re.compile(r"\bgpu(?::[^:(),]+)?:(\d+)")
_ENERGY = re.compile(r"^AcctGatherEnergyType\s*=\s*acct_gather_energy/(\S+)", re.MULTILINE)
_NO_JOULES = 2**63  # Slurm's numbers for "none" and "infinite" are the last below 2**64
_EXIT_BY_SIGNAL = re.compile(r"0:(\d+)")

# The jobs on these are not to blame; a job may have made its node fail, but rarely has.
_TAKEN_BACK = {
    "TIMEOUT": "its walltime was over",
    "CANCELLED": "it was cancelled",
    "PREEMPTED": "a job with a higher priority took its nodes",
    "NODE_FAIL": "one of its nodes failed",
    "DEADLINE": "its deadline had come",
    "REVOKED": "a sibling job on another cluster started",
    "BOOT_FAIL": "its nodes did not boot",
}
# What `--signal=B:...` sends to the shell of a job some time before its end, which ends by that.
_TOLD_TO_END = {signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
_FAULTS = {
    "OUT_OF_MEMORY": "it ran out of memory",
    "FAILED": "it failed",
    "COMPLETED": "it ended by itself",
}


@dataclass(frozen=True, slots=True)
class BatchJobEnd:
    """Why a job ended.

    Attributes:
        words: For people.
        was_taken_back: The batch system ended it; what ran in it is not to blame.
    """

    words: str
    was_taken_back: bool


def ask(job: str) -> BatchJobEnd | None:
    """Return why a job ended, or None if it has not, or Slurm does not know it any more."""
    return read_end(job, _shown(job))


def end_time(job: str) -> float | None:
    """Return when a running job must end [Unix time, s], or None if nothing says so."""
    return read_end_time(_shown(job))


def granted_gpus(job: str) -> dict[str, int] | None:
    """Return the GPUs of each node that a running job was given as GRES, or None if Slurm does not say."""
    return read_granted_gpus(_shown(job, "--details"), hosts)


def hosts(nodes: str) -> list[str]:
    """Return the names that a list of Slurm's such as ``n[0-3]`` stands for."""
    return run_command("scontrol", "show", "hostnames", nodes).split()


def cancel_step(name: str) -> int:
    """Cancel the steps of that name in the job that this process belongs to; return how many there were."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return 0
    listing = run_command("squeue", "--steps", "--noheader", "--format=%i %j", f"--job={job}")
    steps = [line.split()[0] for line in listing.splitlines() if line.split()[1:] == [name]]
    for step in steps:
        run_command("scancel", "--signal=KILL", step)
    return len(steps)


def counts_energy() -> bool:
    """Return whether this cluster has a plug-in that counts energy (``AcctGatherEnergyType``)."""
    found = _ENERGY.search(run_command("scontrol", "show", "config"))
    return found is not None and found[1] != "none"


def has_whole_nodes(job: str) -> bool:
    """Return whether no other job may run on the nodes of a job."""
    return re.search(r"\bOverSubscribe=NO\b", _shown(job)) is not None


def step_joules(job: str, step: str) -> float | None:
    """Return what the step of that name has drawn, with all else on its nodes [J], or None if nobody knows.

    Source: sacct(1), ConsumedEnergyRaw. Without a sensor it is 0, or a number that stands for none.
    """
    asked = ("sacct", "--noheader", "--parsable2", "-j", job, "-o", "JobName,ConsumedEnergyRaw")
    for line in run_command(*asked).splitlines():
        name, _, joules = line.rpartition("|")
        if name == step and joules.isdecimal() and 0 < int(joules) < _NO_JOULES:
            return float(joules)
    return None


def _shown(job: str, *options: str) -> str:
    """Return the record of a job: of the one that a job array is named by, Slurm shows the others, too."""
    asked = ("scontrol", *options, "--oneliner", "show", "job", job)
    shown = run_command(*asked, SLURM_TIME_FORMAT="standard")
    return next((line for line in shown.splitlines() if line.startswith(f"JobId={job} ")), shown)


def run_command(*command: str, **environment: str) -> str:
    """Return the output of a batch system's command, or nothing if it fails."""
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, **environment},
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def read_end_time(shown: str) -> float | None:
    """Return when ``scontrol show job`` says that a job must end [Unix time, s], or None."""
    try:
        return datetime.fromisoformat(dict(_FIELD.findall(shown)).get("EndTime", "")).timestamp()
    except ValueError:  # Unknown, N/A
        return None


def read_granted_gpus(shown: str, expand: Callable[[str], list[str]]) -> dict[str, int] | None:
    """Return the GPUs of each node that ``scontrol --details show job`` names, or None if it names no node.

    Without GRES for GPUs, as on some clusters of whole nodes, each node has 0.

    Args:
        shown: What it says.
        expand: Returns the names that a list of nodes stands for.
    """
    granted: dict[str, int] = {}
    for nodes, gres in _NODES.findall(shown):
        for node in expand(nodes):
            granted[node] = granted.get(node, 0) + sum(map(int, _GPUS.findall(gres)))
    return granted or None


def read_end(job: str, shown: str) -> BatchJobEnd | None:
    """Return what ``scontrol show job`` says of a job's end, or None if it still runs or waits.

    Source: scontrol(1) and squeue(1), JOB STATE CODES, JOB REASON CODES.
    """
    fields = dict(_FIELD.findall(shown))
    state = fields.get("JobState", "")
    why = _TAKEN_BACK.get(state) or _FAULTS.get(state)
    if why is None and fields.get("Restarts", "0") != "0":
        return BatchJobEnd(f"Slurm job {job} was put back into the queue", was_taken_back=True)
    if why is None:
        return None
    reason, code = fields.get("Reason", "None"), fields.get("ExitCode", "0:0")
    by_signal = _EXIT_BY_SIGNAL.fullmatch(code)
    number = int(by_signal[1]) if by_signal else 0
    was_told = state == "FAILED" and number in _TOLD_TO_END
    words = [f"Slurm job {job} is {state}: {'it was told to end from outside' if was_told else why}"]
    if reason not in {"None", "Dependency", state} and state in _FAULTS and not was_told:
        words.append(f"reason {reason}")
    if number:
        words.append(f"signal {number}")
    elif code != "0:0":
        words.append(f"exit code {code.partition(':')[0]}")
    return BatchJobEnd(", ".join(words), was_told or state in _TAKEN_BACK)
