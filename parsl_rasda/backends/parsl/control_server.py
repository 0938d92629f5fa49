"""The controller's end of the channel to the agents that watch over launches (`agent.control_relay`)."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from parsl_rasda.agent.control_relay import ControlAddress, Message

HEARTBEAT_S = 5.0  # between signs of life to every launch

logger = logging.getLogger(__name__)


class ControlServer:
    """The controller's end: one thread owns the socket; `send` may be called from any thread."""

    def __init__(
        self,
        addresses: Sequence[str],
        on_message: Callable[[str, Message], None],
        on_bug: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """Bind to a free port of each address and begin to listen.

        Args:
            addresses: Of this machine, which pilots may reach.
            on_message: Called on the server's thread with a job's id and what its agent sent.
            on_bug: Called there if it cannot go on: no job will be heard of any more.
        """
        import zmq

        public, secret = zmq.curve_keypair()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.curve_server = True
        self._socket.curve_secretkey = secret
        self._socket.curve_publickey = public
        urls = [f"tcp://{each}:{self._socket.bind_to_random_port(f'tcp://{each}')}" for each in addresses]
        self.control_address = ControlAddress(" ".join(urls), public.decode())
        self._on_message, self._on_bug = on_message, on_bug
        self._outgoing: deque[tuple[str, Message]] = deque()
        self._jobs: set[str] = set()
        self._is_closing = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="rasda-control", daemon=True)
        self._thread.start()

    def send(self, job: str, message: Message) -> None:
        """Send a message to a job's agent; it is lost if that is not connected."""
        self._outgoing.append((job, message))
        self._wake()

    def watch(self, job: str) -> None:
        """Send heartbeats to a job's agent from now on."""
        self._jobs.add(job)

    def forget(self, job: str) -> None:
        """Send no more heartbeats to a job's agent."""
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
        try:
            self._pass_on()
        except Exception as error:
            logger.exception("the control channel has failed")
            self._on_bug(error)
        finally:
            self._socket.close()

    def _pass_on(self) -> None:
        """Pass messages on, both ways, until the server is closed."""
        import zmq

        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        next_heartbeat = time.monotonic() + HEARTBEAT_S
        while not self._is_closing:
            ready = dict(poller.poll(int(max(0.0, next_heartbeat - time.monotonic()) * 1000)))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._socket in ready:
                self._receive()
            if time.monotonic() >= next_heartbeat:
                next_heartbeat += HEARTBEAT_S
                self._outgoing.extend((job, {"op": "beat"}) for job in tuple(self._jobs))
            while self._outgoing:
                job, message = self._outgoing.popleft()
                self._socket.send_multipart([job.encode(), json.dumps(message).encode()])

    def _receive(self) -> None:
        job, *frames = self._socket.recv_multipart()
        try:
            message = json.loads(frames[-1])
            self._on_message(job.decode(), {"op": "", **message})
        except (ValueError, TypeError, IndexError):
            logger.warning("dropped message job=%s bytes=%d", job, sum(map(len, frames)))
