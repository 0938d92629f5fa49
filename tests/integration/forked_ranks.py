"""Ranks behind the fork server: how tests start them, and a look at what processes there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from backend_tools import eventually
from rank_launch import ENVIRONMENT, MPIEXEC, PATIENCE_S, is_alive, written_order

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.runtime.process.forkserver import client

RANK_VARIABLES = ("PMI_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
CLIENT = (sys.executable, "-S", "-E", "-s", client.__file__)


class Node:
    """A folder for fork servers of a test's own, and the marks by which it finds what it started."""

    def __init__(self, idle_s: float = 120.0, **environment: str) -> None:
        self.sockets = Path(tempfile.mkdtemp(prefix="forked-"))  # short: a socket's path has 107 bytes
        self.mark = uuid.uuid4().hex
        self.environment = {
            **ENVIRONMENT,
            client.DIRECTORY_VARIABLE: str(self.sockets),
            client.IDLE_VARIABLE: str(idle_s),
            orphan_reaper.RUN_VARIABLE: self.mark,
            **environment,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, self.mark, grace_s=1.0)
        shutil.rmtree(self.sockets)

    def start(self, order, *, prefix=(), launcher=None, program=None, **options):
        """Start a launch, of clients unless another program is given; returns its process."""
        mark = f"{self.mark}/{uuid.uuid4().hex}"
        if launcher is None:
            launcher = (str(MPIEXEC), "-n", str(order.world_size)) if order.world_size > 1 else ()
        process = subprocess.Popen(
            (*prefix, *launcher, *(program or (*CLIENT, str(Path(order.directory) / "order.json")))),
            env={**self.environment, orphan_reaper.JOB_VARIABLE: mark},
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.DEVNULL,
                "stderr": (Path(order.directory) / "log.txt").open("ab"),
                **options,
            },
        )
        process.mark = mark
        return process

    def finished(self, order, **options):
        """Run a launch to its end; returns its exit status and what it printed."""
        status = self.start(order, **options).wait(PATIENCE_S)
        return status, (Path(order.directory) / "log.txt").read_text()

    def order(self, directory, **changes):
        """Write an order for a function that tells what it sees, unless it is another."""
        return written_order(directory, **{"python": "rank_functions:describe", "until": 1, **changes})

    def servers(self):
        """Pids of fork servers; what they fork looks the same, but for a session of its own."""
        return sorted(pid for pid in self.processes() if is_server(pid) and session_of(pid) != pid)

    def processes(self):
        return [process.pid for process in orphan_reaper.marked(orphan_reaper.RUN_VARIABLE, self.mark)]


def described(order, rank=0):
    return json.loads((Path(order.directory) / "scratch" / f"rank-{rank}.json").read_text())


def family_of(order, rank=0):
    """Wait for a rank; returns it, its supervisor and its client."""
    note = Path(order.directory) / "scratch" / f"rank-{rank}.json"
    eventually(note.exists, f"rank {rank} runs")
    pid = described(order, rank)["pid"]
    supervisor = parent_of(pid)
    return {"rank": pid, "supervisor": supervisor, "client": client_of(order, rank)}


def client_of(order, rank):
    path = str(Path(order.directory) / "order.json")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                variables = (entry / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            is_client = words[0] == CLIENT[0] and {client.__file__, path} <= {*words}
            if is_client and (
                order.world_size == 1 or {f"{name}={rank}" for name in RANK_VARIABLES} & {*variables}
            ):
                return int(entry.name)
    raise AssertionError(f"no client of rank {rank}")


def is_server(pid):
    try:
        return b"parsl_rasda.runtime.process.forkserver.server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def session_of(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return pid


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def gone(pids):
    return not any(map(is_alive, pids))
