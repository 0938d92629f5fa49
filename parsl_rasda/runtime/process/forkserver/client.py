"""The stand-in of one rank under its launcher: it has the rank forked, or becomes the rank itself.

    python -S -E -s client.py ORDER.json

It starts in milliseconds, where torch takes seconds: it imports a few modules of the standard library and
nothing of this package. So it has copies of some constants; a unit test compares them with the originals.
The server imports it too, for what both ends must agree on.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time
from _blake2 import blake2b  # hashlib would load OpenSSL for each rank
from contextlib import contextmanager

TYPE_CHECKING = False  # typing's own takes longer to import than all that it would save
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

PROGRAM = "parsl_rasda.runtime"  # what a rank is: ``python -m PROGRAM ORDER.json``
SOURCES = (  # folders of the package whose modules a server has loaded
    *("", "runtime", "runtime/attempt", "runtime/checkpoints", "runtime/engine"),
    *("runtime/process", "runtime/process/forkserver"),
)
RUN_VARIABLE = "PARSL_RASDA_RUN"  # as in `agent.orphan_reaper`
JOB_VARIABLE = "PARSL_RASDA_JOB"
DIRECTORY_VARIABLE = "PARSL_RASDA_FORKSERVERS"  # the folder of sockets, in place of one in /tmp
IDLE_VARIABLE = "PARSL_RASDA_FORKSERVER_IDLE_S"
CONTAINED_VARIABLE = "PARSL_RASDA_CONTAINED"  # as in `launch.container`: set in every container
TORCH_VARIABLE = "PARSL_RASDA_TORCH"  # "0": ranks of logical slots, whose server loads no torch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # ask a rank to leave; blocked while they would kill it
SIGNALS = (*STOP_SIGNALS, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
ACCEPTED = b"A"
LISTENING = b"L"
LISTENING_FD = 3
MARK_BYTES = 255  # reserved in the server's environment, for the mark of a rank's job
PR_SET_PDEATHSIG = 1  # as in `prctl`

# Read when libraries are loaded, which is too late after a fork: each combination has its own server.
_IDENTITY = (
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "LD_", "MALLOC_"),
    *("TORCH_", "PYTORCH_", "PYTHON", RUN_VARIABLE, TORCH_VARIABLE),
)
_OF_ONE_LAUNCH = ("PMI", "OMPI_", "PRTE_", "HYDI_", "HYDRA_", "MPI", JOB_VARIABLE)
_REFUSED_FOR_S = 3600.0
_ATTEMPTS = 3
_LIMITS = 16  # RLIM_NLIMITS of Linux
STATUS = struct.Struct("!i")
SIZE = struct.Struct("!I")


class NoServerError(OSError):
    """No fork server can be used, for this reason."""


def main(arguments: list[str]) -> NoReturn:
    """Stand in for a rank, or be the rank, and end as it ends."""
    die_with_launcher()
    early: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda n, _frame: early.append(n))
    try:
        link = _ask_for_rank(arguments)
    except OSError as error:
        sys.stderr.write(f"parsl_rasda: plain start, without the fork server: {error}\n")
        sys.stderr.flush()
        _become_rank(arguments, early)
    _stand_in(link, early)


# ------------------------------------------------------------------------- what client and server share


def identity(environ: dict[str, str]) -> str:
    """Return the name of the server that can serve this process: only one whose forks equal a plain start."""
    package = os.path.realpath(__file__)  # the keeper finds this file beside itself, behind all links
    for _ in range(4):
        package = os.path.dirname(package)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    beside = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))  # -S: no venv's prefix
    sites = [os.path.join(prefix, "lib", version, "site-packages") for prefix in {sys.prefix, beside}]
    known = (
        (beside, sys.version, os.uname().nodename),
        [(site, _installed(site)) for site in sorted(sites)],
        [source for folder in SOURCES for source in _sources(os.path.join(package, folder))],
        sorted((name, value) for name, value in environ.items() if name.startswith(_IDENTITY)),
    )
    return blake2b(repr(known).encode(), digest_size=10).hexdigest()


def private_directory(environ: dict[str, str]) -> str:
    """Return the folder of sockets on this node, which no other user may enter.

    Raises:
        NoServerError: If another user owns it, or may enter.
    """
    path = environ.get(DIRECTORY_VARIABLE) or f"/tmp/parsl-rasda-{os.getuid()}"  # noqa: S108 - checked below
    os.makedirs(path, 0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NoServerError(f"{path} is not a folder that only this user may enter")
    return path


@contextmanager
def alone(directory: str) -> Iterator[None]:
    """Hold the lock under which a server of a folder begins or ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def refusal(path: str) -> str:
    """Return the file in which a server says why it cannot serve."""
    return path[: -len(".sock")] + ".refused"


def log_of(path: str) -> str:
    """Return a server's log. It is locked (shared) as long as the server or one of its ranks lives."""
    return path[: -len(".sock")] + ".log"


def _installed(site: str) -> list[str]:
    try:
        names = os.listdir(site)
    except OSError:
        return []
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-link", ".pth")))


def _sources(folder: str) -> list[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        found = [(e.path, e.stat()) for e in entries if e.name.endswith(".py")]
    return sorted((path, s.st_mtime_ns, s.st_size) for path, s in found)


# ----------------------------------------------------------------------------------------- the client


def die_with_launcher() -> None:
    """Be killed when the launcher ends; end now if it has ended."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the launcher died before the call; 0 or 1 may be that of a container
        os._exit(1)


def _ask_for_rank(arguments: list[str]) -> socket.socket:
    """Return the link to the supervisor of the rank."""
    environ = dict(os.environ)
    path = os.path.join(private_directory(environ), identity(environ) + ".sock")
    descriptors = [0, 1, 2]
    if is_open(environ.get("PMI_FD", "")):  # through which mpi4py in the rank talks to the launcher
        descriptors.append(int(environ["PMI_FD"]))
    text = json.dumps(_request(arguments, environ)).encode()
    for _ in range(_ATTEMPTS):
        link = _connected(path)
        try:
            socket.send_fds(link, [SIZE.pack(len(text))], descriptors)
            link.sendall(text)
            if link.recv(1) == ACCEPTED:
                return link
        except OSError:  # the server ended before it accepted
            pass
        link.close()
    raise NoServerError("the fork server ended again and again")


def is_open(descriptor: str) -> bool:
    """Return whether a descriptor has come through, which a container may have closed."""
    return descriptor.isdecimal() and os.path.exists(f"/proc/self/fd/{descriptor}")


def _request(arguments: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """Return everything that a process inherits at its start, as JSON."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "asked_at": time.monotonic(),
        "arguments": arguments,
        "environment": environ,
        "directory": os.getcwd(),
        "umask": umask,
        "cpus": sorted(os.sched_getaffinity(0)),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": {kind: resource.getrlimit(kind) for kind in range(_LIMITS)},
    }


def _connected(path: str) -> socket.socket:
    """Return a connection to the server; start one if there is none."""
    try:
        return connection(path)
    except OSError:
        pass
    with alone(os.path.dirname(path)):  # other clients wait here and then find the new server
        try:
            return connection(path)
        except OSError:
            pass
        _check_refusal(path)
        _check_lasting()
        _clean_up(os.path.dirname(path))
        _start_server(path)
        return connection(path)


def ensure_server(path: str) -> None:
    """Start a server here unless there is one; the caller stays as long as it, or is in no step or container.

    Raises:
        NoServerError: If it cannot serve.
    """
    with alone(os.path.dirname(path)):
        try:
            connection(path).close()
        except OSError:
            _check_refusal(path)
            _clean_up(os.path.dirname(path))
            _start_server(path)


def connection(path: str) -> socket.socket:
    """Return a connection to the server of a socket."""
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(path)
    except OSError:
        link.close()
        raise
    return link


def _check_refusal(path: str) -> None:
    try:
        with open(refusal(path), encoding="utf-8") as file:
            reason, age_s = file.read(), time.time() - os.fstat(file.fileno()).st_mtime
    except OSError:
        return
    if age_s < _REFUSED_FOR_S:
        raise NoServerError(reason)


def is_passing(groups: str) -> bool:
    """Return whether these control groups belong to a Slurm step that ends before its job."""
    steps = {part for part in groups.replace("\n", "/").split("/") if part.startswith("step_")}
    return bool(steps - {"step_batch", "step_interactive", "step_extern"})


def _check_lasting() -> None:
    """Refuse to start a server where it would end with this rank: in its Slurm step, or in its container."""
    where = "container" if CONTAINED_VARIABLE in os.environ else "step"
    if where == "container" or is_passing(_control_groups()):
        raise NoServerError(
            f"the pilot started none on this node, and one in a rank's own {where} would end with it"
        )


def _control_groups() -> str:
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _clean_up(directory: str) -> None:
    """Remove what killed servers have left; their locks are gone."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        try:
            if name.endswith((".log", ".step")):
                with open(path, encoding="utf-8") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if name.endswith(".log"):
                        _remove(path[: -len(".log")] + ".sock")
                    os.unlink(path)
            else:
                age_s = time.time() - os.stat(path).st_mtime
                is_old = name.endswith(".refused") and age_s > _REFUSED_FOR_S
                if is_old or ".sock." in name or name.endswith(".part"):  # nobody else starts one now
                    os.unlink(path)
        except OSError:  # it lives, or another process has removed it
            continue


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _start_server(path: str) -> None:
    """Start a daemon and wait until it listens. It imports torch while clients queue."""
    began, reading = time.monotonic(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _be_daemon(path, reading[1])
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    os.close(reading[1])
    answer = os.read(reading[0], 1)
    os.close(reading[0])
    if answer != LISTENING:
        raise NoServerError(f"it did not start within {time.monotonic() - began:.1f} s, see {log_of(path)}")


def _be_daemon(path: str, writing: int) -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(log_of(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # An open pipe of the launcher would keep the launcher alive.
    kept = [os.dup2(fd, 64 + i, inheritable=False) for i, fd in enumerate((null, log, log, writing))]
    for number, descriptor in enumerate(kept):
        os.dup2(descriptor, number)
    os.closerange(LISTENING_FD + 1, 4096)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # undo the binding of the rank that started it
    environ = {n: v for n, v in os.environ.items() if not n.startswith(_OF_ONE_LAUNCH)}
    environ |= {
        JOB_VARIABLE: "." * MARK_BYTES,
        "OPENBLAS_NUM_THREADS": "1",  # it starts threads with NumPy, and no thread survives a fork
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # so that nothing that asks for GPUs starts the driver
    }
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    program = "parsl_rasda.runtime.process.forkserver.server"
    os.execve(sys.executable, [sys.executable, "-P", "-m", program, path], environ)


def _become_rank(arguments: list[str], early: list[int]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    for caught in early:
        os.kill(os.getpid(), caught)
    os.execv(sys.executable, [sys.executable, "-P", "-m", PROGRAM, *arguments])


def _stand_in(link: socket.socket, early: list[int]) -> NoReturn:
    """Pass signals on until the rank ends, and end as it did."""

    def forward(number: int, _frame: object) -> None:
        try:
            link.sendall(bytes([number]))
        except OSError:
            return

    for number in SIGNALS:
        signal.signal(number, forward)
    for caught in early:
        forward(caught, None)
    text = b""
    while len(text) < STATUS.size:
        part = link.recv(STATUS.size - len(text))
        if not part:
            os.kill(os.getpid(), signal.SIGKILL)  # the supervisor was killed, and the rank with it
            os._exit(128 + signal.SIGKILL)  # the first process of a container survives its own signal
        text += part
    leave_as(int(STATUS.unpack(text)[0]))


def leave_as(status: int) -> NoReturn:
    """End as a rank has ended. A negative status is a death by signal."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
        os._exit(128 - status)  # the first process of a container survives its own signal
    os._exit(status & 255)


if __name__ == "__main__":
    main(sys.argv[1:])
