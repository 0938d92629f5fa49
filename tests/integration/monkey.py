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
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from backend_tools import within
from command_line import COMMAND, REPOSITORY
from kills import abandoned_shared_memory, kind_of
from studies import verdict

from parsl_rasda.agent.orphan_reaper import JOB_VARIABLE
from parsl_rasda.errors import JournalError
from parsl_rasda.orchestration.events import EpochReported
from parsl_rasda.orchestration.journal import read
from parsl_rasda.reporting.runs import read_run

STUDY = """
name: chaos
seed: 5
with: {{epoch_s: 0.8, seed: 5}}
tune:
  metric: val_loss
  num_samples: 6
  scheduler: {{variant: synchronous, max_t: 4, max_workers: 4}}
  search_space: {{lr: {{float: [1.0e-4, 1.0e-1], log: true}}}}
  training: {training}
"""
EMULATED = '{python: "workflows.emulated.train:train"}'
TRAINED = '{python: "training:train", batch_size: 2, warmup: {rescale: 1}}'
SITE = """
provider: {{type: LocalProvider}}
accelerator: {accelerator}
mpi_launcher: {launcher}
gpus_per_node: 4
heartbeat_threshold: 5
"""
TRAINING = """
import time
import torch

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])

def train(trial):
    model, _ = trial.prepare(torch.nn.Linear(3, 1), torch.optim.AdamW, lr=trial.config["lr"])
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            trial.step((model(x) - y).square().mean())
        time.sleep(0.6)
        losses = [(model(x) - y).square().mean().detach() for x, y in trial.shard((X, Y))]
        trial.report(val_loss=trial.mean(losses))
"""
KINDS = ("emulated", "trained", "full disk")
DISK = "512k"
ENDED = {130, 4, *(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))}  # to be resumed
RUN_S = 300.0
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


class Cage:
    """A folder of runs, and what undisturbed ones come to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undisturbed: dict[str, tuple[Any, dict[tuple[str, int], float]]] = {}
        (folder / "training.py").write_text(TRAINING, encoding="utf-8")

    def undisturbed(self, kind: str) -> tuple[Any, dict[tuple[str, int], float]]:
        """Return the verdict and all metrics of the study of a kind of run."""
        if kind not in self._undisturbed:
            with self.run(f"undisturbed-{kind.replace(' ', '-')}", kind) as run:
                out, err = run.controller.communicate(timeout=RUN_S)
                assert run.controller.returncode == 0, err
                self._undisturbed[kind] = verdict(json.loads(out)), {(t, e): m for t, e, m in run.reports()}
        return self._undisturbed[kind]

    @contextmanager
    def run(self, name: str, kind: str) -> Iterator[Run]:
        """Start a run; what is left of it in the end goes."""
        found = Run(self, name, kind)
        try:
            found.go_on()
            yield found
        finally:
            found.clean_up()


class Run:
    """One run in a folder of its own."""

    def __init__(self, cage: Cage, name: str, kind: str) -> None:
        self.cage, self.kind, self.folder = cage, kind, cage.folder / name
        self.directory, self.temporary, self.disk = (
            self.folder / "run",
            self.folder / "t",
            self.folder / "disk",
        )
        self._seen: set[psutil.Process] = set()
        for folder in (self.folder, self.temporary, self.disk):
            folder.mkdir()
        trained = kind == "trained"
        study = STUDY.format(training=TRAINED if trained else EMULATED)
        site = SITE.format(
            accelerator="cpu" if trained else "none", launcher="hydra" if trained else "process"
        )
        if kind == "full disk":
            subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.disk), check=True)
            site += f"work_dir: {self.disk}\n"
        (self.folder / "study.yaml").write_text(study, encoding="utf-8")
        (self.folder / "site.yaml").write_text(site, encoding="utf-8")
        shutil.copy(cage.folder / "training.py", self.folder)

    def go_on(self) -> None:
        """Start a controller: of a new run as long as none has written down what it runs."""
        is_there = (self.directory / "study.yaml").exists()
        words = ("resume",) if is_there else ("run", "study.yaml", "--site", "site.yaml", "--dir")
        environment = {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}:{self.folder}",
            "TMPDIR": str(self.temporary),
        }
        self.controller = subprocess.Popen(
            [str(COMMAND), *words, "run", "--json"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> Iterator[tuple[psutil.Process, str, str]]:
        """Yield what lives of the run: each with its kind, and the trial that it belongs to, if to any."""
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and self._is_mine(process):
                    self._seen.add(process)
                    job = process.environ().get(JOB_VARIABLE, "").rpartition("/")[2]
                    yield process, self._kind(process, job), job.partition(".")[0]
            except psutil.Error:
                continue

    def _is_mine(self, process: psutil.Process) -> bool:
        """Whether it has our environment, or had (the interchange overwrites it), or is the child of one."""
        return (
            process.environ().get("TMPDIR") == str(self.temporary)
            or process in self._seen
            or process.ppid() == self.controller.pid
        )

    def _kind(self, process: psutil.Process, job: str) -> str:  # noqa: PLR0911 - a table
        words = " ".join(process.cmdline())
        parent = process.parent()
        above = " ".join(parent.cmdline()) if parent else ""
        if process.pid == self.controller.pid:
            return "controller"
        if "interchange" in words:
            return "interchange"
        if "parsl-rasda-workers" in words and "submit_scripts" not in words:
            return "remover" if "parsl-rasda-workers" in above and "bash" not in above else "manager"
        if "multiprocessing.forkserver" in words:
            return "worker" if "multiprocessing.forkserver" in above else "worker fork server"
        if "warden.py" in words:
            return "warden"
        if "mpiexec" in words:
            return "launcher"
        if "forkserver.server" in words and not job:
            return "fork server"
        if job:
            return kind_of(process.pid)
        return "pilot script" if "submit_scripts" in words else "other"

    def reports(self) -> Iterator[tuple[str, int, float]]:
        """Yield what trials have reported, as the journal has it: trial, epoch, metric."""
        try:
            for record in read(self.directory / "journal.jsonl"):
                if isinstance(record.event, EpochReported):
                    yield record.event.job.trial, record.event.epoch, record.event.metrics["val_loss"]
        except JournalError:  # there is none yet
            return

    def clean_up(self) -> None:
        for process, _, _ in self.processes():
            process.kill()
        self.controller.communicate()
        if self.kind == "full disk":
            subprocess.run(("umount", "-l", self.disk), check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


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
        self.left -= 1
        acts = [self.hit, self.hit, self.hit, self.damage]
        if self.run.kind == "full disk":
            acts += [self.fill, self.fill]
        return self.rng.choice(acts)()

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
        base = self.run.disk if self.run.kind == "full disk" else self.run.directory
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
