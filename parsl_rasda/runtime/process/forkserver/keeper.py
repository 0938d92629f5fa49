"""Fork servers that outlive the ranks' own job steps: one lasting step a node, as long as its server lives.

    python -S -E -s keeper.py ensure NODE... -- srun ... --nodelist={node} ...      on the pilot
    python -S -E -s keeper.py keep                                                   in the step

Slurm ends with a step whatever was started in it, so a rank of a step cannot start the server that later
ranks want. A pilot ensures one on each node of a launch before it starts the launch; a rank then finds it.
Standard library only, as `client`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

try:
    from parsl_rasda.runtime.process.forkserver import client
except ImportError:  # started as a script of its own, beside it
    import client  # type: ignore[import-not-found, no-redef]

PATIENCE_S = 20.0  # for a step to start; whoever finds no server then starts plainly
POLL_S = 0.02
READY = "listening"
_OF_THE_LAUNCH = (client.JOB_VARIABLE, "SLURM_HOSTFILE")  # what marks its processes, and where its ranks go


def ensure(nodes: list[str], prefix: list[str]) -> list[str]:
    """Start a lasting server on each of these nodes that has none; returns the nodes that then have one.

    Args:
        nodes: Names as the prefix wants them.
        prefix: How a process is started in a step of its own, with ``{node}`` for the node.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _OF_THE_LAUNCH}
    stem = os.path.join(client.private_directory(environ), client.identity(environ))
    with client.alone(os.path.dirname(stem)):
        begun = {node: _begin(f"{stem}.{node}.step", _argv(prefix, node), environ) for node in nodes}
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not all(map(_has_answered, begun.values())):
        time.sleep(POLL_S)
    return [node for node, path in begun.items() if _said(path) == READY]


def keep() -> None:
    """Have a server on this node, and stay until it has ended."""
    environ = dict(os.environ)
    path = os.path.join(client.private_directory(environ), client.identity(environ) + ".sock")
    client.ensure_server(path)
    sys.stdout.write(READY)
    sys.stdout.flush()
    try:
        with open(client.log_of(path)) as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # its server holds a share, and so do its ranks' supervisors
    except FileNotFoundError:
        return


def _argv(prefix: list[str], node: str) -> list[str]:
    program = [sys.executable, "-S", "-E", "-s", os.path.abspath(__file__), "keep"]
    return [word.replace("{node}", node) for word in prefix] + program


def _begin(path: str, argv: list[str], environ: dict[str, str]) -> str:
    """Start a node's step unless it runs; its file is locked as long as it does, and holds what it says."""
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
            stdout=file,  # the lock goes along, and ends with the step
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return path
    finally:
        os.close(file)


def _has_answered(path: str) -> bool:
    """Whether a node's step has a server, or has ended without."""
    if _said(path) == READY:
        return True
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # it has ended, and somebody has swept
        return True
    return True


def _said(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments == ["keep"]:
        keep()
        return
    word, *rest = arguments
    if word != "ensure" or "--" not in rest:
        raise SystemExit(f"ensure NODE... -- PREFIX..., or keep; found {arguments}")
    at = rest.index("--")
    missing = sorted({*rest[:at]} - {*ensure(rest[:at], rest[at + 1 :])})
    if missing:
        sys.stderr.write(f"parsl_rasda: no lasting fork server on {', '.join(missing)}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"parsl_rasda: no lasting fork server: {error}\n")
