"""Runs in folders of their own, on each kind of site, with a look at the processes that belong to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import psutil
from command_line import COMMAND, REPOSITORY
from kills import kind_of
from slurm_cluster import SlurmCluster
from studies import verdict

from parsl_rasda.agent.orphan_reaper import JOB_VARIABLE, RUN_VARIABLE
from parsl_rasda.errors import JournalError
from parsl_rasda.orchestration.events import EpochReported
from parsl_rasda.orchestration.journal import read
from tests.integration.globus.bed import GlobusBed

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
SLURM_SITE = {
    "provider": {
        "type": "SlurmProvider",
        "partition": "main",
        "nodes_per_block": 2,
        "gpus_per_node": 2,
        "walltime": "00:10:00",
    },
    "mpi_launcher": "srun",
    "accelerator": "none",
    "gpus_per_node": 2,
    "address": "127.0.0.1",
    "heartbeat_threshold": 5,
}
ENDPOINT = "alps"
KINDS = ("emulated", "trained", "full disk", "slurm", "globus")
DISK = "512k"
RUN_S = 300.0


class Cage:
    """A folder of runs, what undisturbed ones come to, and the services that some kinds need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undisturbed: dict[str, tuple[Any, dict[tuple[str, int], float]]] = {}
        self._services = ExitStack()
        (folder / "training.py").write_text(TRAINING, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._services.close()

    @cached_property
    def cluster(self) -> SlurmCluster:
        """A Slurm with a node to spare."""
        return self._services.enter_context(SlurmCluster(nodes=3, gpus=2))

    @cached_property
    def bed(self) -> GlobusBed:
        """A Globus Compute endpoint, its broker and its service."""
        return self._services.enter_context(GlobusBed(ENDPOINT))

    def undisturbed(self, kind: str) -> tuple[Any, dict[tuple[str, int], float]]:
        """Return the verdict and all metrics of a study: emulated ones are alike wherever they run."""
        kind = "trained" if kind == "trained" else "emulated"
        if kind not in self._undisturbed:
            with self.run(f"undisturbed-{kind}", kind) as run:
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
        study = STUDY.format(training=TRAINED if kind == "trained" else EMULATED)
        (self.folder / "study.yaml").write_text(study, encoding="utf-8")
        (self.folder / "site.yaml").write_text(self._site(), encoding="utf-8")
        shutil.copy(cage.folder / "training.py", self.folder)

    def _site(self) -> str:
        """Return the site file, once what it needs is there."""
        self._environment: dict[str, str] = {}
        match self.kind:
            case "trained":
                return SITE.format(accelerator="cpu", launcher="hydra")
            case "slurm":
                self.cage.cluster.revive()
                self._environment = self.cage.cluster.environment
                return json.dumps(SLURM_SITE)
            case "globus":
                self._environment = self.cage.bed.environment
                return self.cage.bed.site_file(ENDPOINT, self.disk)
            case "full disk":
                words = ("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.disk)
                subprocess.run(words, check=True)
                return f"{SITE.format(accelerator='none', launcher='process')}work_dir: {self.disk}\n"
            case _:
                return SITE.format(accelerator="none", launcher="process")

    def go_on(self) -> None:
        """Start a controller: of a new run as long as none has written down what it runs."""
        is_there = (self.directory / "study.yaml").exists()
        words = ("resume",) if is_there else ("run", "study.yaml", "--site", "site.yaml", "--dir")
        environment = {
            **os.environ,
            **self._environment,
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
        variables = process.environ()
        return (
            variables.get("TMPDIR") == str(self.temporary)
            or variables.get(RUN_VARIABLE, "").partition("/")[0] in {p.name for p in self.disk.iterdir()}
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
