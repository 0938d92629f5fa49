"""The server of one node: loads torch once, never touches a GPU, and forks a supervisor for each rank.

Ranks of logical slots (`accelerator: none`) have a server without torch, which many of them never need.

A client starts ``python -m parsl_rasda.runtime.process.forkserver.server SOCKET``. The server listens before
it imports torch, so that clients queue and need not poll. It has one thread and never runs an operation of
torch, because neither OpenMP's threads nor a CUDA context survive a fork. If it cannot guarantee this, it
writes the reason to a file and ends; ranks then start plainly.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.prctl import adopt_orphans
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.runtime.process.forkserver.process_tree import children

IDLE_S = 300.0
IDLE_WITHOUT_TORCH_S = 5.0  # the next starts in tenths of a second; a killed controller leaves none
POLL_S = 5.0
LISTEN_BACKLOG = 256
OF_EVERY_RANK = (
    *(f"{client.PROGRAM}.__main__", "parsl_rasda.runtime.process.forkserver.supervisor"),
    "multiprocessing.resource_tracker",
)
OF_TORCH = (
    *("numpy", "torch", "torch._dynamo", "torch.distributed", "torch.distributed.checkpoint"),
    *("torch.distributed.checkpoint.state_dict", "torch.optim", "torch.utils.data", "h5py"),
    *("parsl_rasda.runtime.engine.engine", "parsl_rasda.runtime.engine.rank_device"),
)
OPTIONAL = {"h5py"}
GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel")


class ForkServer:
    """Accepts clients and counts the ranks that live."""

    def __init__(self, path: str) -> None:
        """Listen at a socket that only this user can reach."""
        self._path = path
        idle_s = IDLE_S if has_torch() else IDLE_WITHOUT_TORCH_S
        self._idle_s = float(os.environ.get(client.IDLE_VARIABLE, idle_s))
        self._listener = socket.socket(socket.AF_UNIX)
        beside = f"{path}.{os.getpid()}"
        self._listener.bind(beside)
        os.chmod(beside, 0o600)
        self._listener.listen(LISTEN_BACKLOG)
        self._inode = os.stat(beside).st_ino
        os.rename(beside, path)
        self._supervisors: set[int] = set()
        self._should_leave = False
        self._ready_at = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        adopt_orphans()

    def serve(self) -> None:
        """Fork ranks until none has been asked for in a long time, or until SIGTERM."""
        self._ready_at = time.monotonic()
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave_soon)
        busy_at = time.monotonic()
        while not self._should_leave and self._is_ours():
            if not self._supervisors and time.monotonic() - busy_at > self._idle_s:
                break
            sources = [self._listener.fileno(), self._wake_read]
            ready, _, _ = select.select(sources, [], [], min(POLL_S, self._idle_s))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._listener.fileno() in ready:
                self._take(self._listener.accept()[0])
            self._reap()
            if ready:
                busy_at = time.monotonic()
        self._leave()

    def refuse(self, reason: str) -> None:
        """Tell clients to start plainly, and leave."""
        replace_file(Path(client.refusal(self._path)), reason, is_durable=False)
        self._remove_files()

    def _leave_soon(self, *_: object) -> None:
        self._should_leave = True

    def _is_ours(self) -> bool:
        """Return whether clients still find this server, and not a later one."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def _leave(self) -> None:
        self._remove_files()  # no new client finds this server ...
        self._listener.setblocking(False)
        try:
            while True:
                self._take(self._listener.accept()[0])  # ... and those that came before are served
        except BlockingIOError:
            return

    def _remove_files(self) -> None:
        with client.alone(os.path.dirname(self._path)):
            if self._is_ours():
                os.unlink(self._path)
                Path(client.log_of(self._path)).unlink(missing_ok=True)

    def _reap(self) -> None:
        """Forget supervisors that have ended, and kill the orphans of those that were killed."""
        try:
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._supervisors.discard(pid)
        except ChildProcessError:
            self._supervisors.clear()
        for child in children():
            if child not in self._supervisors:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def _take(self, link: socket.socket) -> None:
        from parsl_rasda.runtime.process.forkserver.supervisor import supervise

        peer = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != os.getuid():
            link.close()
            return
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for descriptor in (self._wake_read, self._wake_write):
                    os.close(descriptor)
                self._listener.close()
                supervise(link, self._ready_at)
            finally:
                os._exit(1)
        self._supervisors.add(pid)
        link.close()


def has_torch() -> bool:
    """Return whether ranks need torch: those of logical slots do not."""
    return os.environ.get(client.TORCH_VARIABLE) != "0"


def load() -> str:
    """Import what ranks need. Return why this process must not be forked, or an empty string."""
    for name in (*(OF_TORCH if has_torch() else ()), *OF_EVERY_RANK):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - ranks then start plainly, and report it
            if name not in OPTIONAL:
                return f"it cannot import {name}: {type(error).__name__}: {error}"
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"importing torch started {threads - 1} threads, which no fork survives"
    if has_torch() and _has_gpu():
        return "importing torch opened a GPU, which no fork survives"
    gc.collect()
    gc.freeze()  # else the first collection in each rank would copy every page
    return ""


def _has_gpu() -> bool:
    """Return whether a GPU driver was started, which only a fork can tell for sure."""
    torch = sys.modules["torch"]
    probe = os.fork()
    if probe == 0:
        os._exit(int(torch.cuda._is_in_bad_fork()))
    is_poisoned = os.waitpid(probe, 0)[1] != 0
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    opened = [os.readlink(link) for link in links if os.path.lexists(link)]
    return is_poisoned or torch.cuda.is_initialized() or any(name.startswith(GPU_FILES) for name in opened)


def main(path: str) -> None:
    """Listen, load, serve."""
    began = time.monotonic()
    fcntl.flock(sys.stdout, fcntl.LOCK_SH)  # the supervisors hold it too: see client.log_of
    server = ForkServer(path)
    os.write(client.LISTENING_FD, client.LISTENING)
    os.close(client.LISTENING_FD)
    reason = load()
    if reason:
        server.refuse(reason)
        return
    sys.stdout.write(f"pid {os.getpid()} ready after {time.monotonic() - began:.2f} s\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # without the exit handlers of libraries, which ranks may share
