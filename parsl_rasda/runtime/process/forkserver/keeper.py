"""Fork servers that outlive the job steps of ranks: a step on each node lasts as long as its server lives.

    python -S -E -s keeper.py ensure NODE... -- srun ... --nodelist={node} ... keeper.py keep   on the pilot
    python -S -E -s keeper.py keep                                                              in the step
    python -S -E -s keeper.py start          on a pilot without steps, so that torch is there before the ranks

The step may be in a container, with a Python and a keeper of its own.

Slurm ends with a step all processes that were started in it, so the rank of one step cannot start a server
for later ranks. The pilot ensures a server on each node of a launch before it starts the launch.
Standard library only, like `client`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time

try:
    from parsl_rasda.runtime.process.forkserver import client
except ImportError:  # started as a script, beside the client
    import client  # type: ignore[import-not-found, no-redef]

PATIENCE_S = 20.0  # for a step to start; ranks without a server start plainly
POLL_S = 0.02
READY = "listening"
_OF_THE_LAUNCH = (client.JOB_VARIABLE, "SLURM_HOSTFILE")  # mark its processes, and place its ranks


def ensure(nodes: list[str], argv: list[str]) -> list[str]:
    """Start a lasting server on each of these nodes that has none, and return the nodes that then have one.

    Args:
        nodes: Their names, as the command needs them.
        argv: Command that starts ``keep`` in a step of its own, with ``{node}`` for the node.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _OF_THE_LAUNCH}
    command = hashlib.blake2b(repr(argv).encode(), digest_size=4).hexdigest()
    stem = os.path.join(client.private_directory(environ), f"{client.identity(environ)}.{command}")
    with client.alone(os.path.dirname(stem)):
        begun = {node: _begin(f"{stem}.{node}.step", _argv(argv, node), environ) for node in nodes}
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not all(map(_has_answered, begun.values())):
        time.sleep(POLL_S)
    return [node for node, path in begun.items() if _content(path) == READY]


def start() -> str:
    """Ensure a server on this node, and return the path of its socket as soon as it listens."""
    environ = dict(os.environ)
    path = os.path.join(client.private_directory(environ), client.identity(environ) + ".sock")
    client.ensure_server(path)
    return path


def keep() -> None:
    """Ensure a server on this node, and stay until it has ended."""
    path = start()
    sys.stdout.write(READY)
    sys.stdout.flush()
    try:
        with open(client.log_of(path), encoding="utf-8") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # shared by the server and its ranks' supervisors while they live
    except FileNotFoundError:
        return


def _argv(argv: list[str], node: str) -> list[str]:
    return [word.replace("{node}", node) for word in argv]


def _begin(path: str, argv: list[str], environ: dict[str, str]) -> str:
    """Start a node's step unless it runs. Its file has its output, and is locked as long as it runs."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return path
    else:
        os.ftruncate(file, 0)
        subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,  # the step inherits the lock, which ends with it
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return path
    finally:
        os.close(file)


def _has_answered(path: str) -> bool:
    """Return whether a node's step has a server, or has ended without one."""
    if _content(path) == READY:
        return True
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # it has ended, and its file was removed
        return True
    return True


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def main(arguments: list[str]) -> None:
    """Run the command ``ensure``, ``keep`` or ``start``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments == ["keep"]:
        keep()
        return
    if arguments == ["start"]:
        start()
        return
    word, *rest = arguments
    if word != "ensure" or "--" not in rest:
        raise SystemExit(
            f"keeper.py: expected `ensure NODE... -- COMMAND...`, `keep` or `start`, found {arguments}"
        )
    at = rest.index("--")
    missing = sorted({*rest[:at]} - {*ensure(rest[:at], rest[at + 1 :])})
    if missing:
        sys.stderr.write(f"parsl_rasda: no lasting fork server on {', '.join(missing)}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"parsl_rasda: no lasting fork server: {error}\n")
