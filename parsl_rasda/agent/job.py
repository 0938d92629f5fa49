"""The task of one job: it starts the launch on a pilot, watches over it, and reports.

Parsl sends these functions to its workers by name; their arguments and results are plain JSON.
`run_job` relays between rank 0 and the controller. It ends the launch when it is told to, when the
controller or Parsl's manager is gone, and when the ranks have reported but hang. It returns when
every process of the launch is gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from parsl_rasda.agent import exit_diagnosis, node_probe, orphan_reaper
from parsl_rasda.agent.control_relay import ControlAddress, ControlClient, Message
from parsl_rasda.agent.launch import LEAVE, Launch
from parsl_rasda.exits import EndedBy, ExitObservations
from parsl_rasda.private_files import make_private, private_files
from parsl_rasda.protocol import JobResult, JobSpec, read_epochs

_HELLO_S = 30.0  # for the controller to let it start
_POLL_MS = 50
_ENDING_POLL_MS = 5  # nothing wakes us when a process ends that has closed its output
_REPORT_POLL_S = 2.0  # a look at the file system, which all trials share
_EXIT_S = 10.0  # for a launch to end after its ranks have reported
_TERM_TO_KILL_S = 5.0
_LEASE_GRACE_S = 10.0

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
    return {"report": report.to_json(), "epochs": [e.to_json() for e in epochs]}


def end_job(mark: str, grace_s: float) -> int:
    """End what is left on this node of a launch whose worker died; returns how many processes."""
    return orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, mark, grace_s=grace_s, first=LEAVE)


def describe_allocation(accelerator: str) -> Message:
    """Return what a backend must know of the pilot it has got; see `node_probe`."""
    return node_probe.describe_allocation(accelerator)


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
    make_private(directory)
    order.save(directory / "order.json")
    log = directory / "log.txt"
    try:
        launch = Launch(command, mark, log)
    except OSError as error:
        words = f"cannot start {command['argv'][0]!r}: {error.strerror}"
        return exit_diagnosis.conclude(directory, order, ExitObservations(EndedBy.LAUNCH_ERROR, words))
    try:
        seen = _Watch(order, launch, client).until_it_ends()
    finally:
        launch.kill()
        late = launch.close()
    if client is not None:
        for message in late:
            client.send(message)
    seen = seen or exit_diagnosis.observe_launch(launch.returncode or 0, log)
    return exit_diagnosis.conclude(directory, order, seen)


class _Watch:
    """Watches over one launch, in the thread that started it."""

    def __init__(self, order: JobSpec, launch: Launch, client: ControlClient | None) -> None:
        self._order = order
        self._launch = launch
        self._client = client
        self._parent = os.getppid()
        self._heard_at = time.monotonic()
        self._report_poll_at = 0.0
        self._log_check_at = 0.0
        self._seen: ExitObservations | None = None  # why it must leave before its time
        self._next_force: tuple[float, Callable[[], None]] | None = None
        self._asked: Message | None = None  # the epoch at which rank 0 waits

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
            if message.get("op") == "epoch":
                self._asked = message
            if message.get("op") == "bye":
                self._force_after(_EXIT_S)
            if self._client is not None:
                self._client.send(message)

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
                if self._has_report():
                    self._force_after(_EXIT_S)
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

    def _force_after(self, grace_s: float) -> None:
        when = time.monotonic() + grace_s
        if self._next_force is None or when < self._next_force[0]:
            self._next_force = (when, self._terminate)

    def _terminate(self) -> None:
        seen = self._seen or ExitObservations(EndedBy.RANKS_UNRESPONSIVE, "the ranks had reported")
        self._seen = replace(seen, words=f"{seen.words}; they did not end in time")
        self._launch.terminate()
        self._next_force = (time.monotonic() + _TERM_TO_KILL_S, self._launch.kill)
