"""What a Globus Compute endpoint runs for us: a job, a look at what jobs left on disk, a stage.

Tasks there may be lost, delivered twice, or finished with nobody to tell. So everything that matters
is on the site's disk, in the attempt's directory, beside what the ranks write:

    claim        made by the task that runs the attempt; another delivery of the task finds it and leaves
    stop         the attempt is to leave, or must not begin any more: why, in words
    heartbeat    Unix time [s], renewed while the task watches over the launch
    known        epochs that the controller has heard of, so that ranks keep what it may ask for
    report.json  the ranks' report, or the task's own if they left none

`claim` and `stop` fence an attempt: whoever writes one of them looks for the other afterwards. Handshakes
fence what earlier ones have sent: each has a number of its own, its term, which it leaves in `terms/` of
the run's folder. It ends what was sent under earlier terms, a task of an earlier term does not begin any
more, and however often or late a handshake is delivered, it does no harm to what came after it.

Arguments and results are plain JSON.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from parsl_rasda.agent import exit_diagnosis, node_probe, orphan_reaper, pilot_lease
from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent.heartbeat import (
    CLAIM,
    GONE_S,
    HEARTBEAT_S,
    Heartbeat,
    Message,
    create,
    read,
    silence_of,
    write,
)
from parsl_rasda.agent.stage_calls import look_at_stages, stage, stop_stages
from parsl_rasda.protocol import KNOWN, STOP, JobResult, JobSpec, read_epochs, read_report
from parsl_rasda.types import JobId, Outcome, TrialId

TERMS = "terms"


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Who sends a task.

    Attributes:
        folder: The run's own folder on this site.
        mark: Of the run.
        term: Number of the handshake under which it is sent; the run counts them, over all its controllers.
        block: The pilot that it is meant for (`this_block`); any, if empty.
        study: Name of the study, for words.
    """

    folder: str
    mark: str
    term: int
    block: str = ""
    study: str = ""

    @property
    def process_mark(self) -> str:
        """What is in the environment of all that this sender starts (`orphan_reaper.RUN_VARIABLE`)."""
        return f"{self.mark}/{self.term}"

    def mark_of(self, directory: str) -> str:
        """Return what marks the launch of an attempt: searches of a run have jobs of the same names."""
        return f"{self.mark}{directory.removeprefix(self.folder)}"

    def has_earlier(self, process_mark: str) -> bool:
        """Whether a process was started by this run under an earlier term."""
        mark, _, term = process_mark.partition("/")
        return mark == self.mark and _number(term) < self.term

    def claim(self) -> str:
        """Claim the pilot that this is; returns in words which other run has it, if one has."""
        return pilot_lease.take(this_block(), self.mark, self.study)


def this_block() -> str:
    """Return what tells this pilot of the endpoint from the ones before and after it."""
    names = ("SLURM_JOB_ID", "PBS_JOBID", "PARSL_WORKER_POOL_ID")
    return "/".join(os.environ[name] for name in names if name in os.environ)


def answer(call: str, arguments: Mapping[str, Any]) -> Any:
    """Do what a task asks for.

    Args:
        call: A function of this module.
        arguments: By name.
    """
    calls: tuple[Callable[..., Any], ...] = (describe, run, look, sweep, stage, look_at_stages, stop_stages)
    return {known.__name__: known for known in calls}[call](**arguments)


def sweep(mark: str) -> int:
    """End what a run has left on this node, then give the pilot up; returns how many processes that were."""
    ended = orphan_reaper.end_marked(
        orphan_reaper.RUN_VARIABLE, lambda m: m.partition("/")[0] == mark, grace_s=1.0
    )
    pilot_lease.release(this_block(), mark)
    return ended


def describe(accelerator: str, sender: Message) -> Message:
    """Return what there is here, after ending whatever was sent under earlier terms, and claim it.

    Args:
        accelerator: What a slot is.
        sender: A `TaskContext`, under a new term.

    Returns:
        As `node_probe.describe_allocation`; ``taken``: by whom, in words, if the pilot cannot be had for now.
    """
    ours = TaskContext(**sender)
    terms = Path(ours.folder) / TERMS
    terms.mkdir(parents=True, exist_ok=True)
    (terms / str(ours.term)).touch()
    unfinished = [
        claim.parent
        for claim in Path(ours.folder).glob(f"trials*/*/attempt-*/{CLAIM}")
        if _number(claim.read_text()) < ours.term and not (claim.parent / "report.json").exists()
    ]
    for directory in unfinished:
        write(directory / STOP, "the controller has given it up")
    give_up = time.monotonic() + GONE_S
    while time.monotonic() < give_up and any(
        silence_of(d) < 3 * HEARTBEAT_S and not (d / "report.json").exists() for d in unfinished
    ):
        time.sleep(HEARTBEAT_S / 4)
    ended = orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, ours.has_earlier, grace_s=1.0)
    return {
        **node_probe.describe_allocation(accelerator),
        "python": platform.python_version(),
        "ended": ended,
        "block": this_block(),
        "taken": ours.claim(),
        "workers": int(os.environ.get("PARSL_WORKER_COUNT", "0")),
        "age_s": orphan_reaper.age_s(os.getppid()),  # of the pilot's manager
    }


def run(
    order: Message, launch: Message, mark: str, sender: Message, python_path: Sequence[str], grace_s: float
) -> Message:
    """Run one attempt to its end, unless another task has it, or it was told to stop, or comes too late.

    It does not begin in another pilot than the one it was sent to, whose nodes the launch names, nor in one
    that another run has taken, nor on a site that does not have its module or its inputs: what is wrong with
    the site is no fault of the trial.

    Args:
        order: A `protocol.JobSpec`.
        launch: A `launch.base.LaunchCommand`.
        mark: Marks every process of the launch (`orphan_reaper.JOB_VARIABLE`).
        sender: A `TaskContext`.
        python_path: Folders to import from, before the site's own.
        grace_s: How long ranks may take to leave [s].

    Returns:
        As `look`; ``taken``, ``unfit``: why no job can begin on this pilot for now, or on this site, if
        that is so.
    """
    job, ours = JobSpec.from_json(order), TaskContext(**sender)
    if ours.block not in {"", this_block()}:
        return {"block": this_block(), "jobs": []}
    if taken := ours.claim():
        return {"block": this_block(), "jobs": [], "taken": taken}
    own = launch["environment"].get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join((*python_path, *([own] if own else [])))
    unfit = _missing_module(job, launch, path) or _missing_input(job)
    if unfit is not None:
        return {"block": this_block(), "jobs": [], "unfit": unfit}
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    if not create(directory / CLAIM, str(ours.term)):
        return {"block": this_block(), "jobs": [_state(directory, job.job, 0)]}
    if _newest_term(ours.folder) > ours.term:
        write(directory / STOP, "a later handshake has been there")
    launch["environment"] |= {
        orphan_reaper.RUN_VARIABLE: ours.process_mark,
        **({"PYTHONPATH": path} if path else {}),
    }
    if (reason := read(directory / STOP)) is not None:
        report = exit_diagnosis.conclude(directory, job, Outcome.PREEMPTED, f"{reason} before it started")
    else:
        _tell_known(directory, job.epoch)
        with Watchdog(directory, mark, grace_s, ours) as vigil:
            report = JobResult.from_json(agent_job.run_job(order, launch, mark, None)["report"])
        if vigil.told and report.outcome is Outcome.LOST:
            report = replace(report, outcome=Outcome.PREEMPTED, cause=vigil.told)
    write(directory / "report.json", json.dumps(report.to_json()))
    return {"block": this_block(), "jobs": [_state(directory, job.job, 0)]}


def _missing_module(job: JobSpec, launch: Message, path: str) -> str | None:
    """Return in words that ranks will not find the module of their training function, or None.

    Only what this Python would find is known: ranks of another one are let go.
    """
    if job.python is None or sys.executable not in launch["argv"]:
        return None
    package = job.python.partition(":")[0].partition(".")[0]
    places = [*path.split(os.pathsep), *sys.path, str(Path.cwd())]
    if package in sys.builtin_module_names or PathFinder.find_spec(package, places) is not None:
        return None
    return f"module {package!r} cannot be found there; copy it to the same folder as here, or install it"


def _missing_input(job: JobSpec) -> str | None:
    """Return in words that an input of the study is not on this site, or None."""
    for name, path in job.paths:
        if not Path(path).exists():
            return f"input {name!r} cannot be found there: {path}"
    return None


def look(jobs: Sequence[Message], silence_s: float) -> Message:
    """Return what each of some attempts has left on this site's disk.

    An attempt that has been silent for too long is over: it gets a report that says so, and what is
    left of it here is ended. So is one that is abandoned before any task has claimed it.

    Args:
        jobs: ``directory``, ``job``, ``epoch`` (the last one known), ``mark``; ``stop``: why it is to
            leave, or None; ``abandon``: why it should be over if nobody has claimed it, or None.
        silence_s: How old a heartbeat may be [s].

    Returns:
        ``block``: the pilot that answers; ``jobs``: of each attempt ``report`` and ``epochs`` as
        `agent_job.run_job`, but ``report`` None while it goes on, and whether it is ``claimed``.
    """
    return {"block": this_block(), "jobs": [_look(job, silence_s) for job in jobs]}


def _look(asked: Message, silence_s: float) -> Message:
    directory, job = Path(asked["directory"]), JobId.parse(asked["job"])
    if (known := read(directory / KNOWN)) is not None and _number(known) < asked["epoch"]:
        _tell_known(directory, asked["epoch"])
    reason = asked["stop"] or asked["abandon"]
    if reason is not None and (asked["stop"] or not (directory / CLAIM).exists()):
        directory.mkdir(parents=True, exist_ok=True)
        write(directory / STOP, reason)
    if read_report(directory, job) is None:
        claimed = (directory / CLAIM).exists()
        silent_s = silence_of(directory)
        if not claimed and reason is not None:
            outcome = Outcome.PREEMPTED if asked["stop"] else Outcome.LOST
            _conclude(directory, job, outcome, f"{reason} before it started")
        elif claimed and silent_s > silence_s:
            orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, asked["mark"], grace_s=2.0)
            write(directory / STOP, "it had fallen silent")
            outcome = Outcome.PREEMPTED if asked["stop"] else Outcome.LOST
            _conclude(directory, job, outcome, f"its task on the site had been silent for {silent_s:.0f} s")
    return _state(directory, job, asked["epoch"])


def _tell_known(directory: Path, epoch: int) -> None:
    beside = directory / f"{KNOWN}.{platform.node()}.{os.getpid()}"
    beside.write_text(str(epoch))
    beside.replace(directory / KNOWN)


def _conclude(directory: Path, job: JobId, outcome: Outcome, cause: str) -> None:
    """Write the report of an attempt whose ranks wrote none; theirs stands if it comes first."""
    epochs = read_epochs(directory, job)
    saved = [e for e in epochs if e.checkpoint]
    report = JobResult(
        trial=TrialId(job.trial),
        attempt=job.attempt,
        outcome=outcome,
        epoch=epochs[-1].epoch if epochs else 0,
        cause=cause,
        checkpoint=saved[-1].checkpoint if saved else None,
        at=time.time(),
    )
    write(directory / "report.json", json.dumps(report.to_json()))


def _state(directory: Path, job: JobId, epoch: int) -> Message:
    report = read_report(directory, job)
    return {
        "job": str(job),
        "directory": str(directory),
        "claimed": (directory / CLAIM).exists(),
        "epochs": [e.to_json() for e in read_epochs(directory, job) if e.epoch > epoch],
        "report": None if report is None else report.to_json(),
    }


class Watchdog(Heartbeat):
    """Also holds the pilot for the run, and ends ranks that were told to leave and do not."""

    def __init__(self, directory: Path, mark: str, grace_s: float, sender: TaskContext) -> None:
        super().__init__(directory)
        self._mark, self._grace_s, self._sender = mark, grace_s, sender
        self.told: str | None = None

    def _watch(self) -> None:
        kill_at = float("inf")
        while not self._over.wait(HEARTBEAT_S):
            self._beat()
            if taken := self._sender.claim():  # while this node slept, perhaps
                write(self._directory / STOP, taken)
            if self.told is None and (reason := read(self._directory / STOP)) is not None:
                self.told, kill_at = reason, time.monotonic() + self._grace_s
            if time.monotonic() > kill_at:
                self.told = f"{self.told}; its ranks did not end in time"
                orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, self._mark, grace_s=2.0)
                return


def _newest_term(folder: str) -> int:
    """Return the highest number of a handshake that has been here."""
    return max((_number(path.name) for path in (Path(folder) / TERMS).glob("*")), default=0)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
