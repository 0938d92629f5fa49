"""Whoever reaches the ports of a controller, without the files of its user."""

from __future__ import annotations

import queue
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from parsl.curvezmq import ClientContext
from zmq.utils.monitor import recv_monitor_message

from parsl_rasda.agent.control_relay import ControlAddress, ControlClient
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.backends.parsl.htex import PilotExecutor, build_executor
from parsl_rasda.study.parsl_site import ParslSiteSpec

pytestmark = pytest.mark.parsl

_SHAKEN = zmq.EVENT_HANDSHAKE_SUCCEEDED
_ENDS = (
    _SHAKEN,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_DISCONNECTED,
)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[PilotExecutor]:
    site = ParslSiteSpec.model_validate({"name": "here", "provider": {"type": "LocalProvider"}})
    it = build_executor(
        site,
        "here-0",
        workers=1,
        addresses=("127.0.0.1",),
        worker_init="",
        mark="mark",
        on_states=lambda label, states: None,
    )
    it.run_dir = str(tmp_path)
    it.provider.script_dir = str(tmp_path)
    it.start()
    yield it
    it.shutdown()


def comes_in(socket: zmq.Socket[Any], url: str) -> bool:
    """Whether the other end of a connection accepts this one."""
    socket.linger = 0
    with socket.get_monitor_socket() as monitor:
        try:
            socket.connect(url)
            while monitor.poll(10_000):
                event = recv_monitor_message(monitor)["event"]
                if event in _ENDS:
                    return bool(event == _SHAKEN)
        finally:
            socket.disable_monitor()
    return False


def test_nobody_without_its_certificate_speaks_to_an_interchange(executor: PilotExecutor) -> None:
    url = f"tcp://127.0.0.1:{executor.worker_port}"
    certificates = Path(str(executor.cert_dir))
    assert stat.S_IMODE(certificates.stat().st_mode) == 0o700
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        assert not comes_in(plain, url)
    with zmq.Context() as context, context.socket(zmq.DEALER) as guessing:
        guessing.curve_publickey, guessing.curve_secretkey = zmq.curve_keypair()
        guessing.curve_serverkey = zmq.curve_keypair()[0]
        assert not comes_in(guessing, url)
    known = ClientContext(certificates)
    with known.socket(zmq.DEALER) as manager:
        assert comes_in(manager, url)
    known.term()


def test_nobody_without_its_key_speaks_on_the_control_channel() -> None:
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    server = ControlServer(["127.0.0.1"], lambda job, message: heard.put(f"{job} {message['op']}"))
    try:
        right = server.control_address
        wrong = ControlAddress(right.url, zmq.curve_keypair()[0].decode())
        with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
            assert not comes_in(plain, right.url)
        with ControlClient(wrong, "stranger") as stranger, ControlClient(right, "t0.1") as agent:
            stranger.send({"op": "hello"})
            assert not comes_in(stranger.socket, right.url)
            agent.send({"op": "hello"})
            assert heard.get(timeout=20) == "t0.1 hello"
        assert heard.empty()
    finally:
        server.close()
