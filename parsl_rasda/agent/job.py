"""The task of one job: it starts the launch on a pilot, watches over it, and reports.

Parsl sends these functions to its workers by name; their arguments and results are plain JSON.
`run_job` relays between rank 0 and the controller. It ends the launch when it is told to, when the
controller or Parsl's manager is gone, and when the ranks have reported but hang. It returns when
every process of the launch is gone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parsl_rasda.agent import exit_diagnosis, node_probe, orphan_reaper, warden
from parsl_rasda.agent.control_relay import ControlAddress, ControlClient, Message
from parsl_rasda.agent.energy import JobMeter
from parsl_rasda.agent.launch import LEAVE, Launch
from parsl_rasda.agent.stall_watch import StallWatch, dump_stacks
from parsl_rasda.checkpoint_files import remove_attempts
from parsl_rasda.errors import StorageError
from parsl_rasda.exits import EndedBy, ExitObservations
from parsl_rasda.private_files import make_private, private_files
from parsl_rasda.protocol import JobResult, JobSpec, ProtocolError, read_epochs
from parsl_rasda.storage import storing
from parsl_rasda.types import Fault, JobId, Phase

_HELLO_S = 30.0  # for the controller to let it start
_POLL_MS = 50
_ENDING_POLL_MS = 5  # nothing wakes us when a process ends that has closed its output
_REPORT_POLL_S = 2.0  # a look at the file system, which all trials share
_EXIT_S = 10.0  # for a launch to end after its ranks have reported
_TERM_TO_KILL_S = 5.0
_LEASE_GRACE_S = 10.0
_STACKS_S = 1.0  # for ranks that have stalled to say where

logger = logging.getLogger(__name__)


class Named:
    """A function under the name that Parsl's logs and monitoring will show for its task."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Name a function; it must be importable where the task runs."""
        self.__name__ = name
        self.function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **named)


@private_files()
def run_job(order: Message, launch: Message, mark: str, address: Message | None) -> Message:
    """Run one attempt to its end.

    Args:
        order: A `protocol.JobSpec`.
        launch: A `launch.base.LaunchCommand`.
        mark: Marks every process of the launch (`orphan_reaper.JOB_VARIABLE`).
        address: A `control_relay.ControlAddress`, or None where the controller cannot be reached from here.

    Returns:
        ``report``: a `protocol.JobResult`; ``epochs``: every `protocol.EpochReport` that is on disk.
    """
    job = JobSpec.from_json(order)
    directory = Path(job.directory)
    meter = JobMeter(job, launch)
    job = meter.order
    if address is None:
        report = _launch(job, launch, mark, None)
    else:
        with ControlClient(ControlAddress(**address), str(job.job)) as client:
            refusal = _ask_to_start(client)
            if refusal is None:
                report = _launch(job, launch, mark, client)
            else:
                report = exit_diagnosis.conclude(directory, job, refusal)
    epochs = read_epochs(directory, job.job)
    report = replace(report, energy_j=meter.joules())
    return {"report": report.to_json(), "epochs": [e.to_json() for e in epochs]}


def end_job(mark: str, grace_s: float) -> int:
    """End what is left on this node of a launch whose worker died; returns how many processes."""
    return orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, mark, grace_s=grace_s, first=LEAVE)


def describe_allocation(accelerator: str, container: Sequence[str] = ()) -> Message:
    """Return what a backend must know of the pilot it has got; see `node_probe`."""
    return node_probe.describe_allocation(accelerator, container)


def _ask_to_start(client: ControlClient) -> ExitObservations | None:
    """Return None if this attempt may start, or why it may not."""
    client.send({"op": "hello"})
    answer_by = time.monotonic() + _HELLO_S
    while (left_s := answer_by - time.monotonic()) > 0:
        answer = client.receive(left_s)
        if answer is not None and answer["op"] == "start":
            return None
        if answer is not None and answer["op"] != "beat":
            return ExitObservations(EndedBy.CONTROLLER, "told to leave before it started")
    words = f"the controller did not answer within {_HELLO_S:g} s"
    return ExitObservations(EndedBy.CONTROLLER_SILENT, words)


def _launch(order: JobSpec, command: Message, mark: str, client: ControlClient | None) -> JobResult:
    directory = Path(order.directory)
    log = directory / "log.txt"
    try:
        with storing(directory):
            make_private(directory)
            order.save(directory / "order.json")
            launch = Launch(command, mark, log)
    except StorageError as error:
        seen = ExitObservations(EndedBy.STORAGE, str(error), phase=Phase.NO_RANK, fault=Fault.STORAGE)
        return exit_diagnosis.conclude(directory, order, seen)
    except OSError as error:
        words = f"cannot start a launch: {error.strerror} ({error.filename})"
        seen = ExitObservations(EndedBy.LAUNCH_ERROR, words, phase=Phase.NO_RANK)
        return exit_diagnosis.conclude(directory, order, seen)
    if order.obsolete:
        threading.Thread(target=_remove_obsolete, args=(order,), name="obsolete", daemon=True).start()
    watch = _Watch(order, launch, client, mark)
    try:
        ended = watch.until_it_ends()
    finally:
        late = launch.close()
    for message in late:
        watch.note(message)
        if client is not None:
            client.send(message)
    if watch.unstarted is not None:
        words = f"cannot start {command['argv'][0]!r}: {os.strerror(watch.unstarted)}"
        seen = ExitObservations(EndedBy.LAUNCH_ERROR, words, phase=Phase.NO_RANK)
    elif ended is None:
        seen = exit_diagnosis.observe_launch(launch.returncode or 0, log, watch.phase)
    else:
        seen = replace(ended, phase=watch.phase)
    return exit_diagnosis.conclude(directory, order, seen, watch.report)


def _remove_obsolete(order: JobSpec) -> None:
    """Remove the checkpoints of trials that have ended; what cannot be removed only takes up space."""
    for last in order.obsolete:
        error = remove_attempts(Path(order.directory).parent.parent / last.trial, last.attempt)
        if error is not None:
            logger.warning("checkpoints of trial %s could not be removed: %s", last.trial, error)
            return


class _Watch:
    """Watches over one launch, in the thread that started it.

    Attributes:
        phase: How far its ranks got, as rank 0 has said.
        report: What a rank has sent as the result, or None.
        unstarted: The error number with which the launcher could not be started, or None.
    """

    def __init__(self, order: JobSpec, launch: Launch, client: ControlClient | None, mark: str) -> None:
        self._order, self._mark = order, mark
        self._stalls = StallWatch(order)
        self._launch = launch
        self._client = client
        self.phase = Phase.NO_RANK
        self.report: JobResult | None = None
        self.unstarted: int | None = None
        self._parent = os.getppid()
        self._heard_at = time.monotonic()
        self._report_poll_at = 0.0
        self._log_check_at = 0.0
        self._seen: ExitObservations | None = None  # why it must leave before its time
        self._next_force: tuple[float, Callable[[], None]] | None = None
        self._asked: Message | None = None  # the epoch at which rank 0 waits
        self._newest_epoch = order.epoch  # of which the controller was told
        self._epochs_bytes = 0  # of their file, at the last look

    def until_it_ends(self) -> ExitObservations | None:
        """Relay until the launch has ended; return why it was made to end, or None."""
        import zmq

        poller = zmq.Poller()
        poller.register(self._launch.stdout, zmq.POLLIN)
        if self._client is not None:
            poller.register(self._client.socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(_ENDING_POLL_MS if self._launch.is_silent else _POLL_MS))
            if self._launch.stdout in ready:
                self._from_ranks()
                if self._launch.is_silent:
                    poller.unregister(self._launch.stdout)
            if self._client is not None and self._client.socket in ready:
                self._from_controller(self._client)
            if self._launch.returncode is not None:
                return self._seen
            self._launch.flush()
            self._check_clocks()

    def _from_ranks(self) -> None:
        for message in self._launch.read():
            if message.get("op") != "epoch":
                self._stalls.heard(message)
            if message.get("op") == "step":
                continue
            self.note(message)
            if message.get("op") == "bye":
                self._force_after(_EXIT_S)
            if message.get("op") == "epoch":
                self._tell_epoch(message)
            elif self._client is not None:
                self._client.send(message)

    def _tell_epoch(self, message: Message) -> None:
        """Tell the controller of an epoch, once: rank 0 has sent it, or it was found on disk."""
        if message["epoch"] <= self._newest_epoch:
            return
        self._newest_epoch, self._asked = message["epoch"], message
        self._stalls.heard(message)
        if self._client is not None:
            self._client.send(message)

    def _look_at_epochs(self) -> None:
        """Find epochs that rank 0 could not send: the training function may have closed its descriptors."""
        directory = Path(self._order.directory)
        try:
            size = (directory / "epochs.jsonl").stat().st_size
        except OSError:
            return
        if size == self._epochs_bytes:
            return
        self._epochs_bytes = size
        for epoch in read_epochs(directory, self._order.job):
            self._tell_epoch({"op": "epoch", **epoch.to_json()})

    def note(self, message: Message) -> None:
        """Note how far the ranks got, and how they ended, if a message says so."""
        match message.get("op"):
            case "phase" if message.get("phase") in set(Phase):
                self.phase = Phase(message["phase"])
            case warden.UNSTARTED:
                self.unstarted = int(message["errno"])
            case "ready" | "epoch":
                self.phase = Phase.TRAINING
            case "bye":
                try:
                    found = JobResult.from_json(message)
                except (ValueError, KeyError, TypeError, ProtocolError):
                    return
                if JobId(found.trial, found.attempt) == self._order.job:
                    self.report = self.report or found
            case _:
                pass

    def _from_controller(self, client: ControlClient) -> None:
        while (message := client.receive()) is not None:
            self._heard_at = time.monotonic()
            match message["op"]:
                case "beat":
                    if self._order.interactive:
                        self._launch.write(message, is_optional=True)
                    if self._asked is not None:
                        client.send(self._asked)  # its answer may have been lost
                case "go":
                    if self._asked is not None and message["epoch"] == self._asked["epoch"]:
                        self._asked = None
                        self._stalls.answered()
                        self._launch.write(message)
                case "leave" | "preempt" as op:
                    self._asked = None
                    self._leave(EndedBy.CONTROLLER, op, message["reason"], message["grace_s"])
                case _:
                    logger.debug("ignored message job=%s op=%s", self._order.job, message["op"])

    def _check_clocks(self) -> None:
        now = time.monotonic()
        if now >= self._log_check_at:
            self._log_check_at = now + _REPORT_POLL_S
            self._launch.bound_log()
        if self._next_force is not None and now >= self._next_force[0]:
            self._next_force[1]()
        elif self._next_force is None:
            if now >= self._report_poll_at:
                self._report_poll_at = now + _REPORT_POLL_S
                self._look_at_epochs()
                if self._has_report():
                    self._force_after(_EXIT_S)
                elif (stalled_s := self._stalls.stalled_s) is not None:
                    self._end_stalled(stalled_s)
                    return
            if self._client is not None and now - self._heard_at > self._order.lease_s:
                words = f"the controller was silent for {self._order.lease_s:g} s"
                self._leave(EndedBy.CONTROLLER_SILENT, "preempt", words, _LEASE_GRACE_S)
            elif os.getppid() != self._parent:
                words = "Parsl's manager on this node died"
                self._leave(EndedBy.MANAGER_LOST, "preempt", words, _LEASE_GRACE_S)

    def _has_report(self) -> bool:
        """Whether any rank has reported: the one that failed need not be rank 0."""
        return (Path(self._order.directory) / "report.json").exists()

    def _leave(self, ended_by: EndedBy, op: str, reason: str, grace_s: float) -> None:
        self._seen = ExitObservations(ended_by, reason)
        if self._order.interactive:
            self._launch.write({"op": op})
        else:
            self._launch.leave()
        self._force_after(grace_s)

    def _end_stalled(self, stalled_s: float) -> None:
        log = Path(self._order.directory) / "log.txt"
        words = f"the ranks took no step for {stalled_s:.0f} s; their stacks are in {log}"
        self._seen = ExitObservations(EndedBy.RANKS_STALLED, words)
        dump_stacks(self._mark)
        self._next_force = (time.monotonic() + _STACKS_S, self._launch.kill)  # it can save nothing

    def _force_after(self, grace_s: float) -> None:
        when = time.monotonic() + grace_s
        if self._next_force is None or when < self._next_force[0]:
            self._next_force = (when, self._terminate)

    def _terminate(self) -> None:
        seen = self._seen or ExitObservations(EndedBy.RANKS_UNRESPONSIVE, "the ranks had reported")
        self._seen = replace(seen, words=f"{seen.words}; they did not end in time")
        self._launch.terminate()
        self._next_force = (time.monotonic() + _TERM_TO_KILL_S, self._launch.kill)
