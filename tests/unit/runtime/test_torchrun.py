"""A script is told its place as by torchrun, and nothing of the launcher that started us."""

from __future__ import annotations

import pytest

from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.attempt.launch_context import launch_context
from parsl_rasda.runtime.attempt.torchrun import torchrun_environment
from parsl_rasda.types import TrialId

SLURM = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_NNODES": "2", "SLURM_NPROCS": "4", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GTIDS": "2,3",
    "SLURM_NTASKS_PER_NODE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "PMI_FD": "9", "HYDI_CONTROL_FD": "7"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_RANK": "3", "PRTE_LAUNCHED": "1", "OMPI_MCA_ess": "pmi",
}  # fmt: skip
KEPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_TMPDIR": "/tmp/7",
    "SLURM_CPUS_ON_NODE": "8",
    "PBS_JOBID": "8",
    "PATH": "/bin",
}


def order(slots: tuple[str, ...]) -> JobSpec:
    return JobSpec(
        study="s", trial=TrialId("0007"), attempt=2, config={}, directory="d", seed=0, metric="m", mode="min",
        epoch=0, until=1, max_epochs=4, schedule=((0, len(slots)),), world_size=len(slots), slots=slots,
        accelerator="cuda",
    )  # fmt: skip


@pytest.mark.parametrize("launcher", [SLURM, HYDRA, OPEN_MPI], ids=["srun", "hydra", "openmpi"])
def test_on_two_nodes_it_is_what_torchrun_says(launcher: dict[str, str]) -> None:
    spec = order(("n1:4", "n1:6", "n2:0", "n2:3"))
    environ = {**launcher, **KEPT}
    found = torchrun_environment(spec, launch_context(spec, environ), environ, "n1", 20_000)
    assert found == {
        **KEPT,
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "NODE_RANK": "1",
        "ROLE_NAME": "default", "ROLE_RANK": "3", "ROLE_WORLD_SIZE": "4",
        "MASTER_ADDR": "n1", "MASTER_PORT": "20000", "TORCHELASTIC_RUN_ID": "0007.2",
        "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip


def test_a_single_rank_is_alone() -> None:
    spec = order(("n1:4",))
    found = torchrun_environment(spec, launch_context(spec, {}), {}, "n1", 20_000)
    alone = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
    assert [found[name] for name in alone] == ["0", "1", "1", "0", "1"]
