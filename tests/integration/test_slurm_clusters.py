"""Clusters unlike the usual one: without GRES, with nodes of different GPUs, with a bad worker_init."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from audits import AUDIT, audit, ranks_of
from slurm_cluster import SlurmCluster

from parsl_rasda.orchestration.events import PilotStarted
from parsl_rasda.orchestration.journal import read

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(200)]

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "parsl-rasda"
SITE: dict[str, Any] = {
    "mpi_launcher": "srun",
    "accelerator": "cuda",
    "address": "127.0.0.1",
    "heartbeat_threshold": 5,
}
PROVIDER: dict[str, Any] = {"type": "SlurmProvider", "partition": "main", "walltime": "00:10:00"}
RUN = ("run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json")
DOCTOR = ("doctor", "--site", "site.yaml")
SCHEDULER = {"max_t": 4, "reduction_factor": 2, "max_workers": 4, "growth": "strict"}
STUDY: dict[str, Any] = {
    "name": "clusters",
    "seed": 5,
    "tune": {
        "metric": "val_loss",
        "num_samples": 4,
        "scheduler": SCHEDULER,
        "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
        "training": AUDIT,
    },
}
PROXY = "http://proxy:3128"
LOOKING = """
import os
from pathlib import Path

def look(directory):
    (Path(directory) / "proxy.txt").write_text(os.environ["http_proxy"])
"""


def run(
    folder: Path,
    cluster: SlurmCluster,
    nodes: int,
    words: Sequence[str] = RUN,
    study: dict[str, Any] = STUDY,
    **fields: Any,
) -> subprocess.CompletedProcess[str]:
    provider = {**PROVIDER, "nodes_per_block": nodes, **fields.pop("provider", {})}
    (folder / "site.yaml").write_text(json.dumps({**SITE, "provider": provider, **fields}))  # JSON is YAML
    (folder / "study.yaml").write_text(json.dumps(study))
    return subprocess.run(
        (str(COMMAND), *words),
        cwd=folder,
        env={**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def assert_used(folder: Path, done: subprocess.CompletedProcess[str], slots: list[int]) -> None:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"]["failed"] == 0
    events = (record.event for record in read(folder / "run/journal.jsonl"))
    pilots = [event for event in events if isinstance(event, PilotStarted)]
    assert [len(node.gpus) for node in pilots[0].nodes] == slots
    assert max(audit(folder / "run", "CUDA_VISIBLE_DEVICES")) > 1


def test_nodes_of_different_gpus_are_all_used_in_one_pilot_and_know_the_proxies(
    tmp_path: Path, need: Any
) -> None:
    """As docs/sites.md has it: `worker_init` reaches stages and ranks, `environment` the ranks."""
    need("slurm")
    (tmp_path / "looking.py").write_text(LOOKING)
    study = {key: value for key, value in STUDY.items() if key != "tune"}
    study["stages"] = {
        "look": {"python": "looking:look"},
        "tune": {"tune": {**STUDY["tune"], "num_samples": 6}},  # one on each GPU
    }
    proxies: dict[str, Any] = {
        "provider": {"worker_init": f"export http_proxy={PROXY}"},
        "environment": {"https_proxy": PROXY},
    }
    with SlurmCluster(nodes=2, gpus=(4, 2)) as cluster:
        assert_used(tmp_path, run(tmp_path, cluster, 2, study=study, **proxies), [4, 2])
    attempts = list(ranks_of(tmp_path / "run"))
    ranks = [rank for _, ranks in attempts for rank in ranks]
    every = {f"n{node}:{gpu}" for node, gpus in enumerate((4, 2)) for gpu in range(gpus)}
    assert {slot for order, _ in attempts if order.world_size == 1 for slot in order.slots} == every
    assert {tuple(rank["proxies"]) for rank in ranks} == {(PROXY, PROXY)}
    (looked,) = (tmp_path / "run" / "stages" / "look").rglob("proxy.txt")
    assert looked.read_text() == PROXY


def test_a_trial_that_needs_several_of_nodes_of_different_gpus_is_refused(tmp_path: Path, need: Any) -> None:
    """Slurm would give its step no more GPUs of a node than the smallest node of the job has."""
    need("slurm")
    with SlurmCluster(nodes=3, gpus=(2, 2, 1)) as cluster:
        done = run(tmp_path, cluster, 3)
    assert done.returncode == 4, done.stderr
    assert "a trial needs 4 GPUs at once" in done.stderr
    assert not list(ranks_of(tmp_path / "run"))


def test_a_cluster_without_gres_runs_ranks_and_refuses_a_bad_worker_init(tmp_path: Path, need: Any) -> None:
    need("slurm")
    with SlurmCluster(nodes=1, gpus=0) as cluster:
        assert_used(tmp_path, run(tmp_path, cluster, 1, gpus_per_node=4), [4])
        init = {"worker_init": "source /none/activate"}
        done = run(tmp_path, cluster, 1, words=DOCTOR, gpus_per_node=4, provider=init)  # asks for one pilot
    assert done.returncode == 4, done.stderr
    assert "worker_init failed with exit status 1: source /none/activate" in done.stderr
