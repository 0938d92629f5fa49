"""The stages of one Globus Compute site: sent as tasks, known by what they leave on the site's disk.

Each call has a folder there with its claim, its heartbeat and its answer (`agent.stage_calls`). A call that
is sent twice runs once, and one whose result was lost on the way is answered from the disk. The folder's
name is made of what is called: the next controller waits for a call that a dead one has begun, and begins
it again only if it has ended. A stage may wait for as long as the endpoint's pilot waits in a queue; it
has failed when its heartbeat stops, or when the endpoint goes away.

Everything here runs in the backend's one thread.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from parsl_rasda.backends.globus.client import EndpointClient, RefusedError, Task, UnreachableError
from parsl_rasda.backends.globus.record import GlobusRecord
from parsl_rasda.errors import RasdaError, StageFailedError

Message = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Stage:
    outer: Future[Any]
    call: str
    begun: int  # how often before
    arguments: Message
    task: Task | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> str:
        return str(self.arguments["folder"])


class GlobusStages:
    """Sends the stages of one site, and resolves their futures."""

    def __init__(
        self,
        *,
        when: Callable[[Future[Any], Callable[[Any], None]], None],
        silence_s: float,
        endpoint: str,
        folder: str,
        record: GlobusRecord,
    ) -> None:
        """Begin without stages.

        Args:
            when: Calls back in the backend's thread when a task is done.
            silence_s: How old a heartbeat may be [s].
            endpoint: Its id, for messages.
            folder: The run's own folder on the site.
            record: Remembers how often each call has ended.
        """
        self._record, self._sender = record, uuid.uuid4().hex
        self._when, self._endpoint, self._folder = when, endpoint, folder
        self._silence_s, self._patience_s = silence_s, 3 * silence_s
        self._poll_every_s = min(max(silence_s / 3, 1.0), 20.0)
        self._stages: dict[str, _Stage] = {}
        self._poll: Task | None = None
        self._question: Future[bool] | None = None
        self._poll_at = self._asked_at = 0.0
        self._lost_s = self._patience_s  # after which a poll counts as lost on its way, not as queued
        self._answered = False  # the pilot is up: it must go on answering
        self._silent_since = self._offline_since = float("inf")

    @property
    def folders(self) -> list[str]:
        """The folders of the calls that have not ended."""
        return list(self._stages)

    def start(
        self, client: EndpointClient, outer: Future[Any], target: str, arguments: list[Any], key: str = ""
    ) -> None:
        """Send a call of ``package.module:function``; ``outer`` gets what it returns, or why it failed.

        Args:
            client: Of the endpoint.
            outer: Gets the result.
            target: The function.
            arguments: Plain JSON.
            key: Tells the call from others with the same arguments, by other code for example.
        """
        content = json.dumps([target, arguments, key], sort_keys=True)
        call = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        begun = self._record.begun(call)
        while self._folder_of(call, begun) in self._stages:
            begun += 1
        self._begin(client, outer, call, begun, {"target": target, "arguments": arguments})

    def _folder_of(self, call: str, begun: int) -> str:
        return f"{self._folder}/calls/{call}/{begun}"

    def _begin(
        self, client: EndpointClient, outer: Future[Any], call: str, begun: int, what: Message
    ) -> None:
        folder = self._folder_of(call, begun)
        stage = _Stage(outer, call, begun, {**what, "folder": folder, "sender": self._sender})
        if not self._stages:
            self._poll, self._answered = None, False
            self._poll_at = time.monotonic() + self._poll_every_s
            self._silent_since = self._offline_since = float("inf")
        self._stages[folder] = stage
        self._send(client, stage)

    def watch(self, client: EndpointClient) -> None:
        """Poll every call once in a while, and give them up when their endpoint has gone."""
        now = time.monotonic()
        if not self._stages or now < self._poll_at:
            return
        self._poll_at = now + self._poll_every_s
        if self._poll is None or self._poll.done():
            self._silent_since, self._offline_since = now, float("inf")
            self._lost_s = self._patience_s
            self._ask(client)
        elif self._poll.id is None:
            self._silent_since = now  # the service is away: nobody was asked
        elif now > self._offline_since + self._patience_s:
            self._fail_all("it is offline; start it there")
        elif self._answered and now > self._silent_since + self._patience_s:
            self._fail_all(f"it has not answered for {self._patience_s:.0f} s")
        elif now > self._asked_at + self._lost_s:
            self._lost_s *= 2  # a pilot may wait in its queue for hours
            self._ask(client)
        elif self._question is None or self._question.done():
            self._question = client.ask_whether_online()
            self._when(self._question, self._on_state)

    def give_up(self) -> None:
        """Fail every call here; what runs there runs on."""
        self._fail_all("the backend was closed")

    def _ask(self, client: EndpointClient) -> None:
        self._asked_at = time.monotonic()
        self._poll = client.submit("poll_stages", {"folders": list(self._stages)})
        self._when(self._poll, lambda done: self._polled(client, done))

    def _send(self, client: EndpointClient, stage: _Stage) -> None:
        stage.since = time.monotonic()
        try:
            stage.task = client.submit("stage", stage.arguments)
        except RasdaError as error:
            self._conclude(stage, error)
            return
        self._when(stage.task, lambda done: self._returned(stage, done))

    def _returned(self, stage: _Stage, done: Task) -> None:
        error = done.exception()
        if error is None:
            answer = done.result()
            if answer is not None:
                self._conclude(stage, answer)
        elif not isinstance(error, UnreachableError):
            self._conclude(stage, error)
        elif stage.task is done:
            stage.task = None  # it was not taken: send it again

    def _on_state(self, done: Future[bool]) -> None:
        is_offline = done.exception() is None and not done.result()
        self._offline_since = min(self._offline_since, time.monotonic()) if is_offline else float("inf")

    def _polled(self, client: EndpointClient, done: Task) -> None:
        error = done.exception()
        if error is not None:
            if not isinstance(error, UnreachableError):
                self._fail_all(str(error))
            return
        self._answered, self._silent_since = True, float("inf")
        states = {state["folder"]: state for state in done.result() if state["folder"] in self._stages}
        is_busy = any(s["silent_s"] is not None and not s["answered"] for s in states.values())
        for folder, state in states.items():
            stage = self._stages[folder]
            is_waiting = state["silent_s"] is None
            if state["answered"] or (is_waiting and not is_busy and self._has_waited_long(stage)):
                self._send(client, stage)  # it runs once all the same
            elif not is_waiting and state["silent_s"] > self._silence_s and state["sender"] != self._sender:
                self._begin_again(client, stage)  # it has died with the controller that sent it
            elif not is_waiting and state["silent_s"] > self._silence_s:
                words = f"its task there has been silent for {state['silent_s']:.0f} s; the pilot has ended"
                self._conclude(stage, RefusedError(self._endpoint, words))
            elif stage.task is None:
                self._send(client, stage)

    def _begin_again(self, client: EndpointClient, stage: _Stage) -> None:
        del self._stages[stage.folder]
        self._record.conclude(stage.call, stage.begun)
        self._begin(client, stage.outer, stage.call, stage.begun + 1, stage.arguments)

    def _has_waited_long(self, stage: _Stage) -> bool:
        return time.monotonic() > stage.since + self._patience_s

    def _fail_all(self, cause: str) -> None:
        for stage in tuple(self._stages.values()):
            self._conclude(stage, RefusedError(self._endpoint, cause))

    def _conclude(self, stage: _Stage, answer: Message | BaseException) -> None:
        if self._stages.pop(stage.folder, None) is None:
            return
        self._record.conclude(stage.call, stage.begun)
        if isinstance(answer, BaseException):
            stage.outer.set_exception(answer)
        elif "result" in answer:
            stage.outer.set_result(answer["result"])
        elif "stage" in answer:
            stage.outer.set_exception(StageFailedError(answer["stage"], answer["cause"]))
        else:
            stage.outer.set_exception(RefusedError(self._endpoint, answer["cause"]))
