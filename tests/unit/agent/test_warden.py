"""The parent of a launch: nothing of it lives on, whoever ends first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backend_tools import eventually

from parsl_rasda import prctl
from parsl_rasda.agent import launch, warden
from parsl_rasda.processes import ProcessId, identify
from parsl_rasda.runtime.process.forkserver import client

# A process in a session of its own whose environment is empty, and whose parent has ended.
DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        tell = f"echo $$ > {sys.argv[1]}.new; mv {sys.argv[1]}.new {sys.argv[1]}"
        os.execve("/bin/sh", ["sh", "-c", f"{tell}; exec sleep 600"], {})
    os._exit(0)
os.wait()
"""


def test_constants_that_it_cannot_import_are_those_of_the_rest() -> None:
    assert warden.PR_SET_PDEATHSIG == prctl.PR_SET_PDEATHSIG == client.PR_SET_PDEATHSIG
    assert warden.PR_SET_CHILD_SUBREAPER == prctl.PR_SET_CHILD_SUBREAPER
    assert launch.LEAVE in client.STOP_SIGNALS
    assert f"{client.PROGRAM}.process.forkserver.server".encode() == warden.SERVER


def start(*argv: str, agent: int | None = None) -> subprocess.Popen[bytes]:
    words = (sys.executable, "-S", "-E", "-s", warden.__file__, str(agent or os.getpid()), *argv)
    return subprocess.Popen(words, stdout=subprocess.PIPE)


def daemon(folder: Path, then: str) -> tuple[str, ...]:
    """Return a launcher that leaves a daemon, waits until it is there, and does something else."""
    waits = f"while ! test -e {folder}/pid; do sleep 0.01; done"
    return ("sh", "-c", f"{sys.executable} -c '{DAEMON}' {folder}/pid; {waits}; echo up; {then}")


def pid_in(folder: Path) -> ProcessId:
    found = identify(int((folder / "pid").read_text()))
    assert found is not None, "the daemon lives"
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    if (tmp_path / "pid").exists() and (found := identify(int((tmp_path / "pid").read_text()))):
        os.kill(found.pid, signal.SIGKILL)


def said(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("status", [0, 3, 255])
def test_it_ends_as_the_launcher_ends(status: int) -> None:
    with start("sh", "-c", f"exit {status}") as process:
        assert process.wait(20) == status


def test_it_dies_as_the_launcher_dies() -> None:
    with start("sh", "-c", "kill -ABRT $$") as process:
        assert process.wait(20) == -signal.SIGABRT


def test_a_launcher_that_does_not_exist_is_told_of() -> None:
    with start("/no/such/launcher") as process:
        assert said(process) == b'\x1e{"op": "unstarted", "errno": 2}\n'
        assert process.wait(20) == 127


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_launcher(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    with start("sh", "-c", f"trap 'exit 7' {name}; echo up; while :; do sleep 0.01; done") as process:
        assert said(process) == b"up\n"
        process.send_signal(number)
        assert process.wait(20) == 7


def test_a_daemon_without_an_environment_goes_with_its_launcher(tmp_path: Path) -> None:
    with start(*daemon(tmp_path, "exec sleep 600")) as process:
        assert said(process) == b"up\n"
        left = pid_in(tmp_path)
        process.send_signal(warden.KILL)
        assert process.wait(20) == -signal.SIGKILL
        assert not left.is_alive


def test_a_daemon_goes_when_the_launcher_has_ended_by_itself(tmp_path: Path) -> None:
    with start(*daemon(tmp_path, "exit 0")) as process:
        assert process.wait(20) == 0
        assert identify(int((tmp_path / "pid").read_text())) is None


def test_what_ignores_everything_is_killed_when_the_agent_is_gone(tmp_path: Path) -> None:
    script = "trap '' TERM USR1; echo $$ > {0}.new; mv {0}.new {0}; echo up; while :; do sleep 0.01; done"
    short = (
        f"import {warden.__name__} as w; w.GRACE_S = w.TERM_TO_KILL_S = 0.2; w.POLL_S = 0.05; w.main({{!r}})"
    )
    # The agent: it starts the warden, and ends when it is told to.
    agent = (
        "import os, subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', sys.argv[1].replace('AGENT', str(os.getpid())), 'w']); "
        "print(p.pid, flush=True); sys.stdin.read()"
    )
    program = short.format(["AGENT", "sh", "-c", script.format(tmp_path / "pid")])
    with subprocess.Popen(
        (sys.executable, "-c", agent, program), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        found = identify(int(said(process)))
        assert found is not None
        assert said(process) == b"up\n"
        rank = pid_in(tmp_path)
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == b"", "until nobody holds the pipe"
        eventually(lambda: not rank.is_alive, "its pipe is closed a moment before it has ended")
