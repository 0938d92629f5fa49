"""What a Globus Compute endpoint runs for us: a job, a poll of what jobs left on disk, a stage.

Tasks there may be lost, delivered twice, or finished when nobody waits for them any more. So everything
that matters is on the site's disk, in the attempt's directory, beside what the ranks write:

    claim        made by the task that runs the attempt; another delivery of the task finds it and leaves
    stop         why the attempt is to leave, or must not begin any more
    heartbeat    Unix time [s], renewed while the task watches over the launch
    known        how many epochs the controller knows of, so that ranks keep what it may ask for
    report.json  the ranks' report, or the task's own if they left none

`claim` and `stop` fence an attempt: whoever writes one of them looks for the other afterwards. Handshakes
fence what earlier ones have sent: each has a number of its own, its term, and leaves it in `terms/` of
the run's folder. It ends what was sent under earlier terms, and a task of an earlier term does not begin
any more. However often or late a handshake is delivered, it does no harm to what came after it.

Arguments and results are plain JSON.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from parsl_rasda.agent import exit_diagnosis, node_probe, orphan_reaper, pilot_lease, slurm
from parsl_rasda.agent import job as agent_job
from parsl_rasda.agent.heartbeat import (
    CLAIM,
    HEARTBEAT_S,
    LEAVE_S,
    Heartbeat,
    Message,
    read,
    silence_of,
)
from parsl_rasda.agent.stage_calls import poll_stages, stage, stop_stages
from parsl_rasda.atomic_files import create_file, replace_file
from parsl_rasda.errors import StorageError
from parsl_rasda.exits import EndedBy, ExitObservations, classify_exit
from parsl_rasda.private_files import make_private, private_files
from parsl_rasda.protocol import KNOWN, STOP, JobResult, JobSpec, read_epochs, read_report
from parsl_rasda.storage import storing
from parsl_rasda.types import JobId, Outcome, TrialId

TERMS = "terms"
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE")  # a batch system counts the GPUs


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Who sends a task.

    Attributes:
        folder: The run's own folder on this site.
        mark: Of the run on this endpoint.
        term: Number of the handshake under which it is sent; the run counts them, over all its controllers.
        block: The pilot that it is meant for (`this_block`); any, if empty.
        study: Name of the study, for messages.
        accelerator: What a slot of the site is.
        run: The same for every endpoint of the run; its mark, if empty.
    """

    folder: str
    mark: str
    term: int
    block: str = ""
    study: str = ""
    accelerator: str = "none"
    run: str = ""

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

    def lease_pilot(self) -> str:
        """Lease this pilot to the run, or renew its lease; return which other run has it, for people."""
        if self.accelerator == "none" or not this_block() or any(n in os.environ for n in _ALLOCATIONS):
            return pilot_lease.acquire(this_block(), self.mark, self.study)
        return pilot_lease.acquire(pilot_lease.MACHINE, self.run or self.mark, self.study)


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
    calls: tuple[Callable[..., Any], ...] = (describe, run, poll, clean_up, stage, poll_stages, stop_stages)
    return {known.__name__: known for known in calls}[call](**arguments)


def clean_up(mark: str, run: str = "") -> int:
    """End what a run has left on this node, then release the pilot; return how many processes that were.

    Args:
        mark: Of the run on this endpoint.
        run: As in `TaskContext`.
    """
    ended = orphan_reaper.end_marked(
        orphan_reaper.RUN_VARIABLE, lambda m: m.partition("/")[0] == mark, grace_s=1.0
    )
    pilot_lease.release(this_block(), mark)
    pilot_lease.release(pilot_lease.MACHINE, run or mark)
    return ended


@private_files()
def describe(accelerator: str, sender: Message, container: Sequence[str] = ()) -> Message:
    """Return what there is here, after ending whatever was sent under earlier terms, and lease it.

    Args:
        accelerator: What a slot is.
        sender: A `TaskContext`, under a new term.
        container: The command that looks into the container of the ranks; empty if there is none.

    Returns:
        As `node_probe.describe_allocation`; ``taken``: which other run has the pilot, for people.
    """
    ours = TaskContext(**sender)
    terms = Path(ours.folder) / TERMS
    make_private(terms)
    (terms / str(ours.term)).touch()
    unfinished = [
        claim.parent
        for claim in Path(ours.folder).glob(f"trials*/*/attempt-*/{CLAIM}")
        if _number(claim.read_text(encoding="utf-8")) < ours.term
        and not (claim.parent / "report.json").exists()
    ]
    for directory in unfinished:
        create_file(directory / STOP, "the controller has given it up")
    give_up = time.monotonic() + LEAVE_S
    while time.monotonic() < give_up and any(
        silence_of(d) < 3 * HEARTBEAT_S and not (d / "report.json").exists() for d in unfinished
    ):
        time.sleep(HEARTBEAT_S / 4)
    ended = orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, ours.has_earlier, grace_s=1.0)
    return {
        **node_probe.describe_allocation(accelerator, container),
        "python": platform.python_version(),
        "ended": ended,
        "block": this_block(),
        "taken": ours.lease_pilot(),
        "workers": int(os.environ.get("PARSL_WORKER_COUNT", "0")),
        "age_s": orphan_reaper.age_s(os.getppid()),  # of the pilot's manager
    }


@private_files()
def run(
    order: Message, launch: Message, mark: str, sender: Message, python_path: Sequence[str], grace_s: float
) -> Message:
    """Run one attempt to its end, unless another task has it, or it was told to stop, or comes too late.

    It begins only in the pilot that it was sent to, whose nodes the launch names, and only if no other run
    has leased that. Nor does it begin on a site that lacks its module or its inputs: what is wrong with the
    site is not the trial's fault.

    Args:
        order: A `protocol.JobSpec`.
        launch: A `launch.base.LaunchCommand`.
        mark: Marks every process of the launch (`orphan_reaper.JOB_VARIABLE`).
        sender: A `TaskContext`.
        python_path: Folders that ranks import from, as the order says.
        grace_s: How long ranks may take to leave [s].

    Returns:
        As `poll`; ``taken``, ``unfit``: why no job can begin on this pilot for now, or on this site, if
        that is so.
    """
    job, ours = JobSpec.from_json(order), TaskContext(**sender)
    if ours.block not in {"", this_block()}:
        return {"block": this_block(), "jobs": []}
    if taken := ours.lease_pilot():
        return {"block": this_block(), "jobs": [], "taken": taken}
    own = launch["environment"].get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join((*python_path, *([own] if own else [])))
    unfit = _missing_module(job, launch, path) or _missing_input(job)
    if unfit is not None:
        return {"block": this_block(), "jobs": [], "unfit": unfit}
    directory = Path(job.directory)
    try:
        with storing(directory):
            make_private(directory)
            is_first = create_file(directory / CLAIM, str(ours.term))
    except StorageError as error:
        return {"block": this_block(), "jobs": [], "unfit": str(error)}
    if not is_first:
        return {"block": this_block(), "jobs": [_state(directory, job.job, 0)]}
    launch["environment"] |= {orphan_reaper.RUN_VARIABLE: ours.process_mark}
    report = _run_claimed(job, launch, mark, ours, grace_s)
    with suppress(OSError):  # it is in the answer, too
        create_file(directory / "report.json", json.dumps(report.to_json()))
    return {"block": this_block(), "jobs": [_state(directory, job.job, 0, report)]}


def _run_claimed(job: JobSpec, launch: Message, mark: str, ours: TaskContext, grace_s: float) -> JobResult:
    directory = Path(job.directory)
    if _newest_term(ours.folder) > ours.term:
        create_file(directory / STOP, "a later handshake has been there")
    if (reason := read(directory / STOP)) is not None:
        seen = ExitObservations(EndedBy.CONTROLLER, f"{reason} before it started")
        return exit_diagnosis.conclude(directory, job, seen)
    _write_known(directory, job.epoch)
    with Watchdog(directory, mark, grace_s, ours) as watchdog:
        report = JobResult.from_json(agent_job.run_job(job.to_json(), launch, mark, None)["report"])
    if watchdog.reason:
        return exit_diagnosis.amend(report, ExitObservations(EndedBy.CONTROLLER, watchdog.reason))
    if report.outcome is Outcome.LOST and (batch_job := os.environ.get("SLURM_JOB_ID")):
        end = slurm.ask(batch_job)  # scancel ends the ranks some time before this process
        if end is not None and end.was_taken_back:
            return exit_diagnosis.amend(report, ExitObservations(EndedBy.PILOT_TAKEN_BACK, end.words))
    return report


def _missing_module(job: JobSpec, launch: Message, path: str) -> str | None:
    """Return a message that ranks will not find the module of their training function, or None.

    Known is only what this Python would find: ranks of another one are not checked.
    """
    if job.python is None or sys.executable not in launch["argv"]:
        return None
    package = job.python.partition(":")[0].partition(".")[0]
    places = [*path.split(os.pathsep), *sys.path, str(Path.cwd())]
    if package in sys.builtin_module_names or PathFinder.find_spec(package, places) is not None:
        return None
    return f"module {package!r} cannot be found there; copy it to the same folder as here, or install it"


def _missing_input(job: JobSpec) -> str | None:
    """Return a message that an input of the study is not on this site, or None."""
    for name, path in job.paths:
        if not Path(path).exists():
            return f"input {name!r} cannot be found there: {path}"
    return None


@private_files()
def poll(jobs: Sequence[Message], silence_s: float, block: str = "") -> Message:
    """Return what each of some attempts has left on this site's disk.

    An attempt that has been silent for too long is over: it gets a report that says so, and what is
    left of it here is ended. It is not to blame if another pilot answers than the one it ran in, which has
    ended. An attempt that is abandoned before any task has claimed it is over, too.

    Args:
        jobs: ``directory``, ``job``, ``epoch`` (the last one known), ``mark``; ``stop``: why it is to
            leave, or None; ``abandon``: why it should be over if nobody has claimed it, or None.
        silence_s: How old a heartbeat may be [s].
        block: The pilot that they were sent to; any, if empty.

    Returns:
        ``block``: the pilot that answers; ``jobs``: of each attempt ``report`` and ``epochs`` as
        `agent_job.run_job`, but ``report`` None while it goes on, and whether it is ``claimed``.
    """
    of_silence = EndedBy.TASK_SILENT if block in {"", this_block()} else EndedBy.PILOT_ENDED
    return {"block": this_block(), "jobs": [_poll(job, silence_s, of_silence) for job in jobs]}


def _poll(asked: Message, silence_s: float, of_silence: EndedBy) -> Message:
    directory, job = Path(asked["directory"]), JobId.parse(asked["job"])
    if (known := read(directory / KNOWN)) is not None and _number(known) < asked["epoch"]:
        _write_known(directory, asked["epoch"])
    reason = asked["stop"] or asked["abandon"]
    if reason is not None and (asked["stop"] or not (directory / CLAIM).exists()):
        make_private(directory)
        create_file(directory / STOP, reason)
    if read_report(directory, job) is None:
        claimed = (directory / CLAIM).exists()
        silent_s = silence_of(directory)
        if not claimed and reason is not None:
            seen = ExitObservations(
                EndedBy.TASK_UNCLAIMED, f"{reason} before it started", was_told=bool(asked["stop"])
            )
            _conclude(directory, job, seen)
        elif claimed and silent_s > silence_s:
            orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, asked["mark"], grace_s=2.0)
            create_file(directory / STOP, "it had become unresponsive")
            words = f"its task on the site had been silent for {silent_s:.0f} s"
            _conclude(directory, job, ExitObservations(of_silence, words, was_told=bool(asked["stop"])))
    return _state(directory, job, asked["epoch"])


def _write_known(directory: Path, epoch: int) -> None:
    replace_file(directory / KNOWN, str(epoch), is_durable=False)


def _conclude(directory: Path, job: JobId, seen: ExitObservations) -> None:
    """Write the report of an attempt whose ranks wrote none; theirs stands if it comes first."""
    epochs, found = read_epochs(directory, job), classify_exit(seen)
    saved = [e for e in epochs if e.checkpoint]
    report = JobResult(
        trial=TrialId(job.trial),
        attempt=job.attempt,
        outcome=found.outcome,
        epoch=epochs[-1].epoch if epochs else 0,
        cause=found.cause,
        checkpoint=saved[-1].checkpoint if saved else None,
        at=time.time(),
        phase=found.phase,
        blame=found.blame,
    )
    create_file(directory / "report.json", json.dumps(report.to_json()))


def _state(directory: Path, job: JobId, epoch: int, known: JobResult | None = None) -> Message:
    report = read_report(directory, job) or known
    return {
        "job": str(job),
        "directory": str(directory),
        "claimed": (directory / CLAIM).exists(),
        "epochs": [e.to_json() for e in read_epochs(directory, job) if e.epoch > epoch],
        "report": None if report is None else report.to_json(),
    }


class Watchdog(Heartbeat):
    """Also renews the run's lease of the pilot, and ends ranks that were told to leave and do not.

    Attributes:
        reason: Why the ranks were told to leave, or None.
    """

    def __init__(self, directory: Path, mark: str, grace_s: float, sender: TaskContext) -> None:
        super().__init__(directory)
        self._mark, self._grace_s, self._sender = mark, grace_s, sender
        self.reason: str | None = None

    def _watch(self) -> None:
        kill_at = float("inf")
        while not self._over.wait(HEARTBEAT_S):
            self._write()
            with suppress(OSError):  # a full disk must not end this thread
                if taken := self._sender.lease_pilot():  # while this node was suspended, perhaps
                    create_file(self._directory / STOP, taken)
            if self.reason is None and (reason := read(self._directory / STOP)) is not None:
                self.reason, kill_at = reason, time.monotonic() + self._grace_s
            if time.monotonic() > kill_at:
                self.reason = f"{self.reason}; its ranks did not end in time"
                orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, self._mark, grace_s=2.0)
                return


def _newest_term(folder: str) -> int:
    """Return the highest number of a handshake that has been here."""
    return max((_number(path.name) for path in (Path(folder) / TERMS).glob("*")), default=0)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
