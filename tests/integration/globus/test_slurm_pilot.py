"""A real Slurm behind an endpoint that is set up from the files we ship."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from audits import AUDIT, audit
from slurm_cluster import SlurmCluster

from parsl_rasda.orchestration.events import PilotEnded, PilotStarted
from tests.integration.globus.bed import GlobusBed
from tests.integration.globus.folder import Folder

pytestmark = [pytest.mark.globus, pytest.mark.slurm, pytest.mark.slow]

STUDY = {
    "name": "behind",
    "seed": 5,
    "tune": {
        "metric": "val_loss",
        "num_samples": 6,
        "scheduler": {"variant": "synchronous", "max_t": 4, "max_workers": 4, "growth": "strict"},
        "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
        "training": AUDIT,
        "estimates": {"epoch_s": 0.2, "restart_s": 0.05},
    },
}


@pytest.fixture
def cluster(need: Callable[..., None], bed: GlobusBed) -> Iterator[SlurmCluster]:
    """Let the endpoint at alps have a batch system: two nodes with two GPUs each."""
    need("slurm")
    with SlurmCluster(nodes=2, gpus=2) as cluster, bed.environment_of("alps", cluster.environment):
        yield cluster
        bed.kill_user_endpoint("alps")


def test_trials_run_in_the_endpoints_allocation_and_go_on_in_the_next_one(
    folder: Folder, cluster: SlurmCluster
) -> None:
    (folder.path / "study.yaml").write_text(json.dumps(STUDY))
    options = yaml.safe_load((folder.path / "alps.yaml").read_text())["user_endpoint_config"]
    batch = {"batch_system": "slurm", "partition": "main", "account": "rasda", "interface": "lo"}
    batch |= {"walltime": "00:10:00", "nodes": 2, "gpus_per_node": 2}
    asked: dict[str, Any] = {"user_endpoint_config": options | batch, "nodes": 2, "gpus_per_node": "auto"}
    folder.write_site("alps", accelerator="cuda", mpi_launcher="srun", warm_start=False, **asked)
    process = folder.run("alps")
    folder.wait_until(lambda: any(a.glob("rank-*.json") for a in folder.attempts("alps")), process)
    (first,) = cluster.jobs("RUNNING")
    cluster.run("scancel", first)
    summary = folder.summary(process)
    assert summary["trials"]["completed"] + summary["trials"]["stopped"] == 6, summary
    assert all(trial["losses"] == 0 for trial in summary["trial_list"])
    (disk,) = (folder.path / "disk-alps").iterdir()
    assert audit(disk, "CUDA_VISIBLE_DEVICES") == {1, 2, 4}, "where the ledger put them, on both nodes"
    pilots = [r.event for r in folder.records() if isinstance(r.event, PilotStarted)]
    assert [[(n.node, len(n.gpus)) for n in p.nodes] for p in pilots] == 2 * [[("n0", 2), ("n1", 2)]]
    assert len(cluster.jobs()) == 2
    ended = [r.event.cause for r in folder.records() if isinstance(r.event, PilotEnded)]
    assert ended[0] == f"endpoint {folder.bed.endpoints['alps']}: its pilot has ended"
    folder.check_books()
