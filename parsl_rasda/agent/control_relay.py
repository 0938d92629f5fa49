"""The control channel between the controller and the apps that watch over launches.

The controller binds one encrypted socket; apps connect with the key they got with their task, so
that nobody else can. An app's address is its job's id, which no other attempt ever has. Messages
are JSON objects with an ``op``: those of `protocol`, and between the two ends of the channel

    hello   app to controller: may this attempt start?  Answered by ``start`` or ``leave``.
    start   controller to app

The channel may lose messages when a connection breaks, so nothing depends on one arriving: an app
asks again with every ``beat``, and everything it says is also on disk.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import zmq

BEAT_S = 5.0  # between signs of life to every launch

logger = logging.getLogger(__name__)

Message = dict[str, Any]  # JSON objects; their fields are checked where they are read


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """How an app finds the controller; goes with each task, over Parsl's own encrypted channel."""

    url: str
    key: str


class ControlServer:
    """The controller's end: one thread owns the socket; `send` may be called from any thread."""

    def __init__(self, address: str, on_message: Callable[[str, Message], None]) -> None:
        """Bind to a free port of ``address`` and begin to listen.

        Args:
            address: An address of this machine that pilots can reach.
            on_message: Called on the server's thread with a job's id and what its app said.
        """
        import zmq

        public, secret = zmq.curve_keypair()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.curve_server = True
        self._socket.curve_secretkey = secret
        self._socket.curve_publickey = public
        port = self._socket.bind_to_random_port(f"tcp://{address}")
        self.door = ControlAddress(f"tcp://{address}:{port}", public.decode())
        self._on_message = on_message
        self._outgoing: deque[tuple[str, Message]] = deque()
        self._jobs: set[str] = set()
        self._is_closing = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="rasda-control", daemon=True)
        self._thread.start()

    def send(self, job: str, message: Message) -> None:
        """Send a message to a job's app; it is lost if that is not connected."""
        self._outgoing.append((job, message))
        self._wake()

    def watch(self, job: str) -> None:
        """Send beats to a job's app from now on."""
        self._jobs.add(job)

    def forget(self, job: str) -> None:
        """Send no more beats to a job's app."""
        self._jobs.discard(job)

    def close(self) -> None:
        """Stop listening; returns when the socket is closed."""
        self._is_closing = True
        self._wake()
        self._thread.join()
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # the pipe is full of reasons to wake up

    def _serve(self) -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        next_beat = time.monotonic() + BEAT_S
        while not self._is_closing:
            ready = dict(poller.poll(int(max(0.0, next_beat - time.monotonic()) * 1000)))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._socket in ready:
                self._receive()
            if time.monotonic() >= next_beat:
                next_beat += BEAT_S
                self._outgoing.extend((job, {"op": "beat"}) for job in tuple(self._jobs))
            while self._outgoing:
                job, message = self._outgoing.popleft()
                self._socket.send_multipart([job.encode(), json.dumps(message).encode()])
        self._socket.close()

    def _receive(self) -> None:
        job, *frames = self._socket.recv_multipart()
        try:
            message = json.loads(frames[-1])
            self._on_message(job.decode(), {"op": "", **message})
        except (ValueError, TypeError, IndexError):
            logger.warning("dropped message job=%s bytes=%d", job, sum(map(len, frames)))


class ControlClient:
    """An app's end; used by one thread."""

    def __init__(self, door: ControlAddress, job: str) -> None:
        import zmq

        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.linger = 500  # [ms] for the last words
        self.socket.identity = job.encode()
        public, secret = zmq.curve_keypair()
        self.socket.curve_serverkey = door.key.encode()
        self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        self.socket.connect(door.url)

    def send(self, message: Message) -> None:
        """Say something to the controller; never blocks."""
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
