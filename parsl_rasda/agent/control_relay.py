"""The agent's end of the control channel: from the task that watches over a launch to the controller.

The controller binds one encrypted socket. Agents connect with the key that came with their task, so
nobody else can. An agent's identity on the channel is the id of its job, which no other attempt ever
has. Messages are JSON objects with an ``op``: those of `protocol`, and between the two ends of the channel

    hello   agent to controller: may this attempt start?  Answered by ``start`` or ``leave``.
    start   controller to agent

The channel may lose messages when a connection breaks, so nothing depends on one arriving: an agent
asks again with every ``beat``, and everything it sends is also on disk.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    import zmq

_ANSWER_S = 5.0  # for an address to answer, before the first one is taken

Message = dict[str, Any]  # JSON objects; their fields are checked where they are read


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """How an agent finds the controller; goes with each task, over Parsl's own encrypted channel.

    Attributes:
        url: Where it listens; of several, with blanks between them, one may be out of reach for a node.
        key: Its public key.
    """

    url: str
    key: str


def reachable(urls: Sequence[str]) -> str:
    """Return the first of these that answers from here, or simply the first if none does in time."""
    if len(urls) == 1:
        return urls[0]
    with ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for url in urls:
            attempt = stack.enter_context(socket.socket())
            attempt.setblocking(False)
            host, _, port = url.removeprefix("tcp://").rpartition(":")
            with suppress(OSError):  # there is no way at all
                if attempt.connect_ex((host, int(port))) in {0, errno.EINPROGRESS}:
                    waiting.register(attempt, selectors.EVENT_WRITE, url)
        give_up = time.monotonic() + _ANSWER_S
        while waiting.get_map() and (left_s := give_up - time.monotonic()) > 0:
            for key, _ in waiting.select(left_s):
                attempt = cast("socket.socket", key.fileobj)  # as registered
                if attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return str(key.data)
                waiting.unregister(attempt)
    return urls[0]


class ControlClient:
    """The agent's end; used by one thread."""

    def __init__(self, address: ControlAddress, job: str) -> None:
        import zmq

        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.linger = 500  # [ms] for the last messages
        self.socket.identity = job.encode()
        public, secret = zmq.curve_keypair()
        self.socket.curve_serverkey = address.key.encode()
        self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        self.socket.connect(reachable(address.url.split()))

    def send(self, message: Message) -> None:
        """Send a message to the controller; never blocks."""
        import zmq

        try:
            self.socket.send(json.dumps(message).encode(), zmq.NOBLOCK)
        except zmq.Again:
            return  # thousands of messages are waiting: the controller is gone, and the lease will end

    def receive(self, timeout_s: float = 0.0) -> Message | None:
        """Return the controller's next message, or None if there is none within ``timeout_s`` [s]."""
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        message = json.loads(self.socket.recv())
        return {"op": "", **message}

    def close(self) -> None:
        """Leave the channel."""
        self.socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
