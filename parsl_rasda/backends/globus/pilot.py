"""The pilot of an endpoint, from its request until it is up.

Whether it is up is asked by a handshake, a task that is answered once the endpoint has a pilot. It is sent
again after longer and longer times, since a pilot may wait in a batch queue for hours; meanwhile the
service says whether the endpoint is online. One that stays offline is refused. If another study uses the
pilot, or if it is about to end, the next one is waited for as in a queue.

Everything here runs in the backend's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from parsl_rasda.agent.endpoint_tasks import TaskContext
from parsl_rasda.backends.allocation import PilotAllocation
from parsl_rasda.backends.globus import handshake
from parsl_rasda.backends.globus.client import EndpointClient, PilotLostError, UnreachableError
from parsl_rasda.backends.globus.jobs import RESEND_S, Message
from parsl_rasda.orchestration.events import RequestPilot
from parsl_rasda.study.sites import GlobusSiteSpec

logger = logging.getLogger(__name__)


class GlobusPilot:
    """One pilot, and the handshake with it.

    Attributes:
        request: What it answers.
        sender: Who sends tasks to it; knows its block once it is up.
        allocation: What it has, once it is up.
        is_leaving: Whether it is to end once its jobs have left.
    """

    def __init__(
        self,
        request: RequestPilot,
        sender: TaskContext,
        site: GlobusSiteSpec,
        *,
        spent: str | None,
        when: Callable[[Future[Any], Callable[[Any], None]], None],
        up: Callable[[GlobusPilot, Message], None],
        refused: Callable[[GlobusPilot, str], None],
        delayed: Callable[[GlobusPilot, str], None],
    ) -> None:
        """Prepare; nothing is asked before `shake_hands`.

        Args:
            request: What it answers.
            sender: Under a new term.
            site: What was declared.
            spent: The block of a pilot that is about to end, if there is one: it is not this one.
            when: Calls back in the backend's thread when a task is done.
            up: Called once it is up, with what the handshake has found.
            refused: Called with the reason why there will be none.
            delayed: Called once with the reason why it is waited for.
        """
        self.request, self.sender = request, sender
        self.allocation: PilotAllocation | None = None
        self.is_leaving = False
        self._site, self._spent = site, spent
        self._when, self._up, self._refused, self._delayed = when, up, refused, delayed
        self._silence_s = site.heartbeat_threshold_s
        self._handshake: Future[Message] | None = None  # on its way
        self._shaken_at = self._shake_at = 0.0  # when it was sent; not before
        self._lost_s = 10 * self._silence_s  # after which it counts as lost on its way, not as queued
        self._question: Future[bool] | None = None  # whether the endpoint is online
        self._asked_at = -1e9
        self._offline_since: float | None = None
        self._cause = self._delay = ""

    def shake_hands(self, client: EndpointClient) -> None:
        """Ask, ask again after a while, and be refused when the endpoint stays away."""
        now = time.monotonic()
        if self._offline_since is not None and now > self._offline_since + self._silence_s:
            self._refused(self, self._cause)
            return
        again_s = RESEND_S if self._offline_since is not None else self._silence_s
        if (self._question is None or self._question.done()) and now > self._asked_at + again_s:
            self._asked_at, self._question = now, client.ask_whether_online()
            self._when(self._question, self._on_state)
        if self._handshake is not None and now > self._shaken_at + self._lost_s:
            self._handshake, self._lost_s = None, 2 * self._lost_s
        if self._handshake is None and self._offline_since is None and now >= self._shake_at:
            arguments = handshake.arguments_of(self._site, self.sender)
            self._shaken_at, self._handshake = now, client.submit("describe", arguments)
            self._when(self._handshake, self._shaken)

    def _on_state(self, done: Future[bool]) -> None:
        error = done.exception()
        if error is None and done.result():
            self._offline_since = None
        else:
            words = f"endpoint {self._site.endpoint_id} is offline; start it there"
            self._is_away(str(error) if error else words)

    def _is_away(self, cause: str) -> None:
        self._cause, self._offline_since = cause, self._offline_since or time.monotonic()

    def _shaken(self, done: Future[Message]) -> None:
        if self.allocation is not None:
            return
        error = done.exception()
        if isinstance(error, UnreachableError):
            self._is_away(str(error))
            if self._handshake is done:
                self._handshake = None  # it was not taken: send it again as soon as the service answers
        elif isinstance(error, PilotLostError):
            self._handshake = None  # the one after it will answer
        elif error is not None:
            self._refused(self, str(error))
        else:
            self._on_description(done.result())

    def _on_description(self, found: Message) -> None:
        refusal = handshake.refusal_of(self._site, found)
        if refusal is not None:
            self._refused(self, refusal)
        elif found["block"] == self._spent:
            self._ask_later()
            logger.info("waiting for the next pilot site=%s", self._site.name)
        elif delay := handshake.taken_message(self._site, found):
            self._ask_later()
            if delay != self._delay:
                self._delayed(self, delay)
            self._delay = delay
        else:
            self.sender = replace(self.sender, block=found["block"])
            self.allocation = handshake.allocation_of(self._site, found, now=time.time())
            self._up(self, found)

    def _ask_later(self) -> None:
        self._handshake, self._shake_at = None, time.monotonic() + self._silence_s
