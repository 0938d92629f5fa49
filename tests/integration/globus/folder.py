"""A user's folder, with sites behind the endpoints of the bed, and what a run leaves in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backend_tools import eventually

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.orchestration.events import JobEnded, PilotEnded, StartJob
from parsl_rasda.orchestration.journal import Record, read
from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.protocol import JobSpec, read_epochs
from parsl_rasda.study import load_study
from tests.integration.globus.bed import REPOSITORY, GlobusBed

NOISE = re.compile(r"Traceback|globus_compute_sdk|ResultWatcher|AMQP|pika")  # it is in globus.log
COMMAND = Path(sys.executable).parent / "parsl-rasda"
DEADLINE_S = 240.0

STUDY = """
name: federated
seed: 5
with: {epoch_s: %(epoch_s)s, efficiency: 0.9, seed: 5}
tune:
  metric: val_loss
  mode: min
  num_samples: %(trials)s
  scheduler: {variant: synchronous, max_t: 4, max_workers: 2}
  search_space:
    lr: {float: [1.0e-4, 1.0e-1], log: true}
  training:
    python: workflows.emulated.train:train
  estimates: {epoch_s: 0.5, restart_s: 1.0}
"""

LOCAL = """
provider: {type: LocalProvider}
accelerator: none
mpi_launcher: process
gpus_per_node: 2
"""


class Folder:
    """A user's folder: a study, and site files for the endpoints of the bed."""

    def __init__(self, path: Path, bed: GlobusBed) -> None:
        self.path, self.bed = path, bed
        # With it a trial that waits may go to any site, also to one that is late on a busy machine.
        self.shared = f"tune.checkpoints=file://{path}/store"
        (path / "local.yaml").write_text(LOCAL)
        self.write_study()
        for site in bed.endpoints:
            self.write_site(site)

    def write_study(self, *, epoch_s: float = 0.5, trials: int = 6, **changes: str) -> None:
        text = STUDY % {"epoch_s": epoch_s, "trials": trials}
        for old, new in changes.items():
            text = text.replace(old, new)
        (self.path / "study.yaml").write_text(text)

    def write_site(self, site: str, **fields: Any) -> None:
        (self.path / f"{site}.yaml").write_text(
            self.bed.site_file(site, self.path / f"disk-{site}", **fields)
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(COMMAND), *words],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.bed.environment, "PYTHONPATH": str(REPOSITORY)},
        )

    def run(
        self, *sites: str, into: str = "run", study: str = "study.yaml", settings: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        named = [word for site in sites for word in ("--site", f"{site}.yaml")]
        changed = [word for setting in settings for word in ("--set", setting)]
        return self.start("run", study, *named, *changed, "--dir", into, "--json")

    def summary(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        assert not NOISE.search(err), err
        found: dict[str, Any] = json.loads(out)
        return found

    def status(self, into: str = "run") -> str:
        out, err = self.start("status", into).communicate(timeout=DEADLINE_S)
        assert out, err
        return out

    def wait_until(self, is_so: Callable[[], Any], process: subprocess.Popen[str]) -> None:
        eventually(lambda: is_so() or process.poll() is not None, deadline_s=DEADLINE_S)
        assert process.poll() is None, process.communicate()

    def attempts(self, site: str) -> list[Path]:
        return sorted((self.path / f"disk-{site}").glob("*/trials/*/attempt-*"))

    def records(self, into: str = "run") -> list[Record]:
        journal = self.path / into / "journal.jsonl"
        return list(read(journal)) if journal.exists() and journal.stat().st_size else []

    def started(self, into: str = "run") -> list[StartJob]:
        return [i for r in self.records(into) for i in r.instructions if isinstance(i, StartJob)]

    def causes(self, into: str = "run") -> dict[str, str]:
        """Return why no pilot of a site could be had."""
        ended = [r.event for r in self.records(into) if isinstance(r.event, PilotEnded)]
        return {e.site: e.cause for e in ended if not e.usable}

    def has_epochs(self, site: str) -> bool:
        return any((a / "epochs.jsonl").exists() for a in self.attempts(site))

    def ranks(self) -> list[int]:
        """Return every process that a run of this folder has started on a site."""
        runs = {path.name for path in self.path.glob("disk-*/*")}
        found = orphan_reaper.marked(orphan_reaper.RUN_VARIABLE, lambda mark: mark.partition("/")[0] in runs)
        return [process.pid for process in found]

    def seconds(self, site: str) -> list[float]:
        """Return how long each epoch on a site took [s]."""
        orders = [JobSpec.load(attempt / "order.json") for attempt in self.attempts(site)]
        return [e.seconds for o in orders for e in read_epochs(Path(o.directory), o.job)]

    def check_books(self, into: str = "run") -> None:
        """Every attempt started once and ended once at most, no slot is held, and nothing is left."""
        records, started = self.records(into), [start.job for start in self.started(into)]
        study = load_study(self.path / into / "study.yaml", check_targets=False)
        (tune,) = study.tune_stages.values()
        machine = replay_search(RunDirectory(self.path / into), study.name, tune.tune).machine
        assert not machine.jobs
        up = (p for p in machine.pilots.up.values() if machine.pilots.accepts_jobs(p.pilot))
        slots = sum(len(n.gpus) for p in up for n in p.nodes)
        assert machine.cluster_state.ledger.free == slots, "a slot has leaked"
        ended = [r.event.job for r in records if isinstance(r.event, JobEnded)]
        assert len(set(started)) == len(started)
        assert len(set(ended)) == len(ended)
        assert set(ended) <= set(started)
        eventually(lambda: not self.ranks(), deadline_s=20.0)


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on where trials ran: survivors, best, metrics."""
    return {t["trial"]: (t["state"], t["epoch"], t["metric"]) for t in summary["trial_list"]}
