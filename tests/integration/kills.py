"""Trials whose ranks, launchers and fork servers are killed at random, above all while they start."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from backend_tools import within
from forked_ranks import CLIENT, Node, is_server, session_of
from rank_launch import MPIEXEC, OPENMPI, epochs_of, written_order
from width_cases import differing

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors

EPOCHS = 6
WIDTHS = (1, 2, 4)
LATEST_KILL_S = 1.0  # a start takes about a third of it
PATIENCE_S = 60.0
SETTLE_S = 1.0
ALONE_S = 10.0  # after the end of a launch, for what is left of it to end by itself
LAUNCHERS = {
    "hydra": (str(MPIEXEC),),
    "openmpi": (
        str(OPENMPI / "mpiexec"),
        "--allow-run-as-root",
        "--bind-to",
        "none",
        "--host",
        "localhost:4",
    ),
}


def endure(folder, kills, seed=0, launcher="hydra"):
    """Train trials of six epochs until so many processes have been killed; returns what came of it.

    Every attempt is resumed at a width drawn at random from the last checkpoint of the one before. A
    trial that is done must have the weights and the reports of an undisturbed one, to the bit.
    """
    rng, facts, done = random.Random(seed), Counter(), Counter()
    shared_memory = abandoned_shared_memory()
    reference = order_of(folder / "reference", 1, 0, None)
    slowest_s, longest_left_s = 0.0, 0.0
    with Node() as node:
        if node.finished(reference)[0]:
            raise AssertionError("the undisturbed trial failed")
        expected = {r.epoch: r.metrics for r in epochs_of(reference)}
        weights = read_tensors(folder / "reference" / f"epoch-{EPOCHS:06d}")
        while sum(done.values()) < kills:
            place, epoch, checkpoint = folder / f"trial-{facts['trials']}", 0, None
            for attempt in range(1000):
                order = order_of(place / str(attempt), rng.choice(WIDTHS), epoch, checkpoint)
                armed = sum(done.values()) < kills
                launch, victim, took_s = one_attempt(node, order, rng, LAUNCHERS[launcher], armed=armed)
                done.update([victim] if victim else [])
                slowest_s = max(slowest_s, took_s)
                left_s, orphans = end_of_the_rest(launch)
                longest_left_s = max(longest_left_s, left_s)
                facts["orphans"] += orphans
                for report in reported(order):
                    facts["wrong_reports"] += report.metrics != expected[report.epoch]
                facts["left_behind"] += len(left_of(node))
                epoch, checkpoint = newest(order, epoch, checkpoint)
                if epoch == EPOCHS:
                    break
            facts["attempts"] += attempt + 1
            facts["trials"] += 1
            facts["wrong_trials"] += bool(differing(read_tensors(Path(checkpoint)), weights))
            shutil.rmtree(place)
        if node.finished(order_of(folder / "last", 1, 0, None))[0]:  # starts a server that sweeps
            raise AssertionError("the last trial failed")
        orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, node.mark, grace_s=5.0)
        facts["processes_left"] = len(node.processes())
        facts["files_left"] = len(list(node.sockets.iterdir()))
    facts["shared_memory_left"] = len(abandoned_shared_memory() - shared_memory)
    times = {
        "slowest_end_after_a_kill_s": round(slowest_s, 2),
        "longest_left_after_an_end_s": round(longest_left_s, 2),
    }
    return {"kills": dict(done), **facts, **times}


def order_of(directory, world_size, epoch, checkpoint):
    return written_order(
        directory,
        world_size=world_size,
        epoch=epoch,
        until=EPOCHS,
        config={"lr": 0.02, "samples": 203},
        resume_from=str(checkpoint) if checkpoint else None,
    )


def one_attempt(node, order, rng, launcher, *, armed):
    """Start a launch and kill something of it; returns it, what, and how long the launch then took to end."""
    words = (*launcher, "-n", str(order.world_size)) if order.world_size > 1 else ()
    launch = node.start(order, launcher=words)
    victim, took_s = None, 0.0
    try:
        launch.wait(rng.uniform(0.0, LATEST_KILL_S) if armed else PATIENCE_S)
    except subprocess.TimeoutExpired:
        victim = kill_one(node, launch, rng) if armed else None
        began = time.monotonic()
        launch.wait(PATIENCE_S)
        took_s = 0.0 if victim in {None, "server"} else time.monotonic() - began
    return launch, victim, took_s


def end_of_the_rest(launch):
    """Return how long something of an ended launch lived on [s], and how much of it had to be ended."""
    began = time.monotonic()
    within(ALONE_S, lambda: not orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, launch.mark))
    took_s, orphans = time.monotonic() - began, orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, launch.mark)
    orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, launch.mark, grace_s=0.0)  # as runners do
    return took_s, len(orphans)


def kill_one(node, launch, rng):
    """Kill a process of some kind, each kind being as likely; returns its kind."""
    kinds = {"launcher": [launch.pid], "server": node.servers()}
    for process in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, launch.mark):
        if process.pid != launch.pid:
            kinds.setdefault(kind_of(process.pid), []).append(process.pid)
    kind = rng.choice(sorted(kind for kind, pids in kinds.items() if pids))
    try:
        os.kill(rng.choice(kinds[kind]), signal.SIGKILL)
    except ProcessLookupError:
        return None  # it ended by itself
    return kind


def kind_of(pid):
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return "rank"
    if is_server(pid):
        return "supervisor" if session_of(parent) != parent else "rank"
    return "client" if words[0] == CLIENT[0] else "proxy"


def reported(order):
    return epochs_of(order) if (Path(order.directory) / "epochs.jsonl").exists() else []


def newest(order, epoch, checkpoint):
    """Return the epoch and the place of the newest whole checkpoint."""
    found = sorted(p for p in Path(order.directory).glob("epoch-*") if p.suffix != ".tmp")
    return (int(found[-1].name.split("-")[1]), found[-1]) if found else (epoch, checkpoint)


def abandoned_shared_memory():
    """Return the objects in /dev/shm that no process has.

    Without the semaphores of multiprocessing, which these ranks never make, but killed workers of other
    programs on this machine leave behind.
    """
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            used |= {
                line.rpartition("/dev/shm/")[2]
                for line in maps.read_text().splitlines()
                if "/dev/shm/" in line
            }
        except OSError:
            continue
    names = {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.mp-")}
    return names - used


def left_of(node):
    """Return what is left of a run between launches beside its fork server.

    A moment is given to a server that a client had just begun to start, and to a supervisor that finds its
    client gone.
    """

    def left():
        return [p for p in node.processes() if p not in node.servers()]

    within(SETTLE_S, lambda: not left())
    return left()
