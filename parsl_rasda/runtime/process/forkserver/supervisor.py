"""The parent of one forked rank: it relays signals and status, and leaves no process behind.

It stands between the server and the rank, so that ranks outlive the server and a death on either side is
noticed at once: if the client ends, the rank is killed; if the supervisor is killed, the rank is too.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from parsl_rasda.errors import RasdaError
from parsl_rasda.prctl import adopt_orphans, die_with_parent
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.attempt.attempt import FORKED
from parsl_rasda.runtime.process.exit_status import shown_status
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.runtime.process.forkserver.process_tree import end_children

ENV_START_FIELD = 50 - 3  # of /proc/self/stat, behind pid, name and state
SPARE_FD = 64
STANDARD = (0, 1, 2)
MOST_DESCRIPTORS = 8


def supervise(link: socket.socket, ready_at: float) -> NoReturn:
    """Fork the rank that the client asks for, and stay until it and its helpers are gone.

    Args:
        link: The connection to the client.
        ready_at: When torch was loaded, by the monotonic clock of this node [s].
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    adopt_orphans()  # helpers of the rank, when it dies
    request, descriptors = _received(link)
    _mark(request["environment"].get(client.JOB_VARIABLE, ""))
    request["environment"][FORKED] = f"{max(0.0, ready_at - request['asked_at']):.3f}"
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    parent = os.getpid()
    link.sendall(client.ACCEPTED)
    signal.pthread_sigmask(signal.SIG_BLOCK, client.STOP_SIGNALS)
    rank = os.fork()
    if rank == 0:
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            for descriptor in (wake_read, wake_write):
                os.close(descriptor)
            link.close()
            _be_rank(request, descriptors)
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    status = _watch(link, rank, wake_read)
    end_children()
    if status is not None:
        shown = _shown_status(request, os.waitstatus_to_exitcode(status))
        with contextlib.suppress(OSError):
            link.sendall(client.STATUS.pack(shown))
    os._exit(0)


def _received(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, descriptors, _, _ = socket.recv_fds(link, client.SIZE.size, MOST_DESCRIPTORS)
    if len(head) < client.SIZE.size:
        os._exit(0)  # the client is gone
    (size,) = client.SIZE.unpack(head)
    text = b""
    while len(text) < size:
        part = link.recv(size - len(text))
        if not part:
            os._exit(0)
        text += part
    return json.loads(text), descriptors


def _mark(mark: str) -> None:
    """Write the job's mark into the environment that other processes see of this one and its children.

    /proc shows the environment at the start of a process. No setenv changes it; only overwriting it does.
    """
    text = f"{mark}\0".encode()
    if len(text) > client.MARK_BYTES:
        return
    start = int(
        Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[ENV_START_FIELD]
    )
    environment = b"\0" + Path("/proc/self/environ").read_bytes()
    found = environment.find(f"\0{client.JOB_VARIABLE}=.".encode())
    if found >= 0:
        ctypes.memmove(start + found + len(client.JOB_VARIABLE) + 1, text, len(text))


def _watch(link: socket.socket, rank: int, wake: int) -> int | None:
    """Pass signals on until the rank ends. Return its wait status, or None if the client ended first."""
    while True:
        ready, _, _ = select.select([link.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            pid, status = os.waitpid(rank, os.WNOHANG)
            if pid:
                return status
        if link.fileno() in ready:
            try:
                signals = link.recv(64)
            except OSError:
                signals = b""
            if not signals:
                os.kill(rank, signal.SIGKILL)
                os.waitpid(rank, 0)
                return None
            for number in signals:
                os.kill(rank, number)


def _shown_status(request: Mapping[str, Any], status: int) -> int:
    """Return the status with which the client shall end."""
    try:
        spec = JobSpec.load(Path(request["directory"], request["arguments"][0]))
        return shown_status(spec, request["environment"], status)
    except (RasdaError, OSError, ValueError, KeyError, TypeError, IndexError):  # then there was no job
        return status


def _be_rank(request: Mapping[str, Any], descriptors: list[int]) -> NoReturn:
    """Be the rank that the client would have become by a plain start."""
    environment = request["environment"]
    _take_descriptors(environment, descriptors)
    for number in (*client.SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.setsid()
    os.chdir(request["directory"])
    os.umask(request["umask"])
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, request["cpus"])
    for kind, limits in request["limits"].items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(int(kind), tuple(limits))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, request["priority"])
    os.environ.clear()
    os.environ.update(environment)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        setattr(sys, name, open(descriptor, mode, buffering=1, closefd=False))  # noqa: SIM115 - for life
    atexit._clear()
    program = importlib.import_module(f"{client.PROGRAM}.__main__")
    main: Callable[[list[str]], NoReturn] = program.main
    sys.argv = [str(program.__file__), *request["arguments"]]
    sys.modules["__main__"] = program  # `spawn` of multiprocessing reads its name
    importlib.invalidate_caches()
    try:
        main(request["arguments"])
    except BaseException:
        traceback.print_exc()  # before it could write a report
        raise


def _take_descriptors(environment: Mapping[str, str], descriptors: list[int]) -> None:
    wanted = list(STANDARD)
    if len(descriptors) > len(STANDARD):
        wanted.append(int(environment["PMI_FD"]))
    spare = [os.dup2(d, SPARE_FD + i, inheritable=False) for i, d in enumerate(descriptors)]
    for descriptor in descriptors:
        os.close(descriptor)
    for number, descriptor in zip(wanted, spare, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
