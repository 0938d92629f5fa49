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

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import zmq

Message = dict[str, Any]  # JSON objects; their fields are checked where they are read


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """How an agent finds the controller; goes with each task, over Parsl's own encrypted channel."""

    url: str
    key: str


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
        self.socket.connect(address.url)

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
