"""A monkey that kills, stops and damages what belongs to a run, by a seed, and a judge of what came of it.

A controller that has ended is resumed until the study is done. It must then have come to what it comes to
undisturbed: the same survivors and metrics, each epoch of each trial with the same metric, no trial failed.

The monkey spares two things. By docs/faults.md a trial that dies twice, on different slots where others fare
well, has failed itself: so what looks like a trial's own death is done to it once between two of its epochs.
And the small process that removes a pool's folder after its death is left to do so.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from backend_tools import within
from cage import ENDPOINT, RUN_S, Cage, Run
from kills import abandoned_shared_memory
from studies import verdict

from parsl_rasda.reporting.runs import read_run

ENDED = {130, 4, *(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))}  # to be resumed
ALONE_S = 40.0  # after the end of a run, for what is left of it to end by itself
RESUMES = 20
LIKE_A_FAULT = {"rank", "supervisor", "client", "proxy", "launcher", "warden", "fork server"}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)


@dataclass
class Found:
    """What came of a run.

    Attributes:
        acts: What the monkey did, in words.
        wrong: What must not have come of it, in words.
    """

    kind: str
    seed: int
    acts: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    counted: Counter[str] = field(default_factory=Counter)


class Monkey:
    """Does something to a run now and then."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.rng = run, random.Random(seed)
        self.left = self.rng.randint(3, 8)
        self.is_patient = self.rng.random() < 0.8  # it waits until something trains
        self._epochs: dict[str, int] = {}  # that a trial had when something was done to it

    def pause_s(self) -> float:
        """Return how long to wait before the next act [s]."""
        return self.rng.uniform(0.2, 2.0) if self.left else RUN_S

    def act(self) -> str:
        """Do one thing; return what, in words, or nothing if there was nothing to do it to."""
        if self.is_patient and not any(self.run.reports()):
            return ""
        self.is_patient = False
        acts = [self.hit, self.hit, self.hit, self.damage]
        acts += {
            "full disk": [self.fill, self.fill],
            "slurm": [self.fail_node, self.cancel],
            "globus": [self.kill_endpoint, self.kill_user_endpoint, self.kill_pilot, self.stop_broker],
        }.get(self.run.kind, [])
        done = self.rng.choice(acts)()
        self.left -= bool(done)
        return done

    def hit(self) -> str:
        """Send a signal to a process, each kind being as likely."""
        kinds: dict[str, list[tuple[psutil.Process, str]]] = {}
        for process, kind, trial in self.run.processes():
            if kind not in {"remover", "other"}:
                kinds.setdefault(kind, []).append((process, trial))
        if not kinds:
            return ""
        kind = self.rng.choice(sorted(kinds))
        process, trial = self.rng.choice(sorted(kinds[kind], key=lambda found: found[0].pid))
        if kind in LIKE_A_FAULT and not self._may_hit({trial} if trial else self._running()):
            return ""
        number = self.rng.choice(SIGNALS)
        seconds = self.rng.choice([1.0, 3.0, 8.0])
        try:
            process.send_signal(number)
            if number is signal.SIGSTOP:
                self._wait(seconds)
                process.send_signal(signal.SIGCONT)
        except psutil.Error:
            return ""
        what = f"{number.name} {seconds:g} s" if number is signal.SIGSTOP else number.name
        return f"{what} {kind} {trial}".strip()

    def _running(self) -> set[str]:
        return {trial for _, _, trial in self.run.processes() if trial}

    def _may_hit(self, trials: set[str]) -> bool:
        """Whether these trials have finished an epoch since something like a fault was done to each."""
        done = Counter(trial for trial, _, _ in self.run.reports())
        if not all(done[trial] > self._epochs.get(trial, -1) for trial in trials):
            return False
        self._epochs |= {trial: done[trial] for trial in trials}
        return True

    def damage(self) -> str:
        """Do harm to a file of a checkpoint."""
        base = self.run.disk if any(self.run.disk.iterdir()) else self.run.directory
        files = sorted(p for p in base.rglob("epoch-*/*") if p.is_file() and ".tmp" not in str(p))
        if not files:
            return ""
        file, how = self.rng.choice(files[-8:]), self.rng.choice(["flip", "cut", "delete"])
        try:
            data = bytearray(file.read_bytes())
            if how == "delete":
                file.unlink()
            elif how == "cut":
                os.truncate(file, len(data) // 2)
            elif data:
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
                with file.open("r+b") as opened:
                    opened.write(data)
        except OSError:
            return ""
        return f"{how} {file.relative_to(base)}"

    def fill(self) -> str:
        """Let the disk be full for a while."""
        filler = self.run.disk / "filler"
        with filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        seconds = self.rng.uniform(0.5, 5.0)
        self._wait(seconds)
        filler.unlink()
        return f"full for {seconds:.1f} s"

    def fail_node(self) -> str:
        """Let a node's daemon be dead for a while."""
        node, seconds = f"n{self.rng.randrange(3)}", self.rng.uniform(1.0, 15.0)
        self.run.cage.cluster.kill_daemon(node)
        self._wait(seconds)
        self.run.cage.cluster.revive_nodes()
        return f"slurmd {node} dead for {seconds:.1f} s"

    def cancel(self) -> str:
        """Cancel a pilot."""
        jobs = self.run.cage.cluster.jobs("RUNNING")
        if not jobs:
            return ""
        self.run.cage.cluster.run("scancel", jobs[0], check=False)
        return "scancel"

    def kill_endpoint(self) -> str:
        """Kill an endpoint, which is started again after a while."""
        seconds = self.rng.uniform(1.0, 8.0)
        self.run.cage.bed.kill_endpoint(ENDPOINT)
        self._wait(seconds)
        self.run.cage.bed.start_endpoint(ENDPOINT)
        return f"endpoint dead for {seconds:.1f} s"

    def kill_user_endpoint(self) -> str:
        """Kill what takes tasks."""
        return "SIGKILL user endpoint" if self.run.cage.bed.kill_user_endpoint(ENDPOINT) else ""

    def kill_pilot(self) -> str:
        """Kill what manages the workers behind an endpoint."""
        return "SIGKILL pilot" if self.run.cage.bed.kill_pilot(ENDPOINT) else ""

    def stop_broker(self) -> str:
        """Let the broker be gone for a while."""
        seconds = self.rng.uniform(1.0, 8.0)
        self.run.cage.bed.await_endpoints()  # one that just starts would give up
        self.run.cage.bed.stop_broker()
        self._wait(seconds)
        self.run.cage.bed.start_broker(wait=True)
        return f"broker gone for {seconds:.1f} s"

    def _wait(self, seconds: float) -> None:
        within(seconds, lambda: False)


def endure(cage: Cage, kind: str, seed: int) -> Found:
    """Let a monkey loose on a run, resume it until it is done, and judge what it has come to."""
    expected = cage.undisturbed(kind)
    found, began, shared_memory = Found(kind, seed), time.monotonic(), abandoned_shared_memory()
    with cage.run(f"{kind.replace(' ', '-')}-{seed}", kind) as run:
        out = _play(run, Monkey(run, seed), found)
        found.seconds = round(time.monotonic() - began, 1)
        if out is not None:
            _judge(run, json.loads(out), expected, found)
        left = within(ALONE_S, lambda: not list(run.processes())) or list(run.processes())
        if left is not True:
            found.wrong += [f"orphan: {name} {process.cmdline()}" for process, name, _ in left]
            found.counted["orphans"] += len(left)
        files = [p.name for p in run.temporary.iterdir() if not p.name.startswith("torchinductor_")]
        files += [
            str(p) for p in run.directory.rglob("*") if p.suffix == ".tmp" or p.name == "controller.json"
        ]
        files += sorted(abandoned_shared_memory() - shared_memory)
        found.wrong += [f"left: {name}" for name in files]
        found.counted["files_left"] += len(files)
    return found


def _play(run: Run, monkey: Monkey, found: Found) -> str | None:
    """Return what the last controller printed, if the study is done."""
    while True:
        try:
            out, err = run.controller.communicate(timeout=monkey.pause_s())
        except subprocess.TimeoutExpired:
            if not monkey.left:
                found.wrong.append(f"not done in {RUN_S:g} s")
                return None
            if act := monkey.act():
                found.acts.append(act)
            continue
        code = run.controller.returncode
        found.codes.append(code)
        if code == 0:
            return str(out)
        if code not in ENDED or len(found.codes) > RESUMES:
            found.wrong.append(f"exit code {code}: {err[-2000:]}")
            return None
        run.go_on()


def _judge(run: Run, summary: dict[str, Any], expected: Any, found: Found) -> None:
    the_verdict, metrics = expected
    failed = [t for t in summary["trial_list"] if t["state"] == "failed"]
    found.wrong += [f"trial {t['trial']} failed: {t['reason']}" for t in failed]
    found.counted["trials_failed"] += len(failed)
    if verdict(summary) != the_verdict:
        found.wrong.append(f"verdict {verdict(summary)}")
    reported = list(run.reports())
    missing = set(metrics) - {(trial, epoch) for trial, epoch, _ in reported}
    other = {(trial, epoch) for trial, epoch, metric in reported if metrics.get((trial, epoch)) != metric}
    found.wrong += [f"epoch {epoch} of {trial} lost" for trial, epoch in sorted(missing | other)]
    found.counted["epochs_lost"] += len(missing | other)
    leaked = slots_leaked(run.directory)
    if leaked:
        found.wrong.append(f"{leaked} slots leaked")
    found.counted["slots_leaked"] += leaked
    found.counted["done"] += summary["state"] == "done"


def slots_leaked(directory: Path) -> int:
    """Return how many slots of the pilots that are up nobody has, and nobody may have, at the end."""
    (search,) = read_run(directory).searches.values()
    machine = search.machine
    ledger = machine.cluster_state.ledger
    there = sum(len(n.gpus) for pilot in ledger.pilots for n in machine.pilots.up[pilot].nodes)
    return there - ledger.free - ledger.num_set_aside + len(machine.jobs)


def short(text: str) -> str:
    """Return a line without what differs from run to run."""
    return re.sub(r"/\S+/", "", text)[:300]
