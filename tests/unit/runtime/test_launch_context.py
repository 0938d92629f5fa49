from __future__ import annotations

import socket

import pytest

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime import local_trial
from parsl_rasda.runtime.attempt.launch_context import LAUNCHERS, launch_context
from parsl_rasda.runtime.engine import group
from parsl_rasda.types import TrialId

OMPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}
SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
SLOTS = ("n1:4", "n1:6", "n2:0", "n2:3")


def order(**changes) -> JobSpec:
    return JobSpec(
        **{
            "study": "s", "trial": TrialId("t"), "attempt": 1, "config": {}, "directory": "d", "seed": 0,
            "metric": "m", "mode": "min", "epoch": 0, "until": 1, "max_epochs": 1, "schedule": ((0, 4),),
            "world_size": 4, "slots": SLOTS, "accelerator": "cuda", **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("environ", "rank"), [(OMPI, 2), (PMI, 1), (SLURM, 3), ({**PMI, **SLURM}, 1)])
def test_the_rank_is_read_from_the_launcher_and_not_from_slurm_around_it(environ, rank) -> None:
    assert launch_context(order(), environ).rank == rank


@pytest.mark.parametrize(
    ("rank", "mask", "index"), [("0", "4,6", 0), ("1", "4,6", 1), ("2", "0,3", 0), ("3", "0,3", 1)]
)
def test_a_rank_sees_the_gpus_of_its_job_on_its_node(rank, mask, index) -> None:
    context = launch_context(order(), {**PMI, "PMI_RANK": rank})
    assert context.environment == {"CUDA_VISIBLE_DEVICES": mask}
    assert context.device_index == index
    assert not context.one_node
    assert context.local_size == 2


def test_slots_are_places_among_the_gpus_that_the_pilot_sees() -> None:
    here = order(world_size=2, slots=("n1:1", "n1:3"))
    environ = {"PMI_RANK": "1", "PMI_SIZE": "2", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c,GPU-d"}
    context = launch_context(here, environ)
    assert context.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-d"}
    assert context.device_index == 1


@pytest.mark.parametrize(
    ("accelerator", "variable"), [("rocm", "ROCR_VISIBLE_DEVICES"), ("xpu", "ZE_AFFINITY_MASK")]
)
def test_each_accelerator_has_its_own_mask(accelerator, variable) -> None:
    assert list(launch_context(order(accelerator=accelerator), PMI).environment) == [variable]


def test_without_an_accelerator_nothing_is_masked() -> None:
    assert launch_context(order(accelerator="cpu"), PMI).environment == {}


def test_a_process_alone_stands_for_all_logical_slots() -> None:
    context = launch_context(order(accelerator="none"), {})
    assert (context.rank, context.size) == (0, 1)


def test_a_process_alone_inside_a_step_of_its_pilot_is_no_rank_of_that_step() -> None:
    alone = {"PARSL_RASDA_RANK": "0", "PARSL_RASDA_SIZE": "1"}  # as `launch.process` says
    context = launch_context(order(accelerator="none"), {**SLURM, **alone})
    assert (context.rank, context.size) == (0, 1)


def test_a_launch_of_another_width_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="found 1; allowed: 4"):
        launch_context(order(), {})
    with pytest.raises(InvalidSettingError, match="slots"):
        launch_context(order(slots=("n1:0",)), PMI)


def test_a_rank_says_where_it_really_is() -> None:
    host = socket.gethostname()
    here = order(world_size=2, slots=(f"{host}:0", "elsewhere:0"))
    ranks = {"PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}
    assert launch_context(here, {**ranks, "PMI_RANK": "0"}).slot == f"{host}:0"
    assert launch_context(here, {**ranks, "PMI_RANK": "1"}).slot == f"{host}:0", "ordered elsewhere, but here"
    slurm = {**SLURM, "SLURM_PROCID": "2", "SLURMD_NODENAME": "n2"}
    assert launch_context(order(), slurm).slot == "n2:0"


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({"GLOO_SOCKET_IFNAME": "ib0"}, "10.1.0.7"),
        ({"NCCL_SOCKET_IFNAME": "hsn0,ib0"}, "10.1.0.7"),
        ({"GLOO_SOCKET_IFNAME": "ib9"}, "192.0.2.7"),
        ({}, "192.0.2.7"),
    ],
)
def test_ranks_meet_on_the_network_that_the_site_names(monkeypatch, environ, address) -> None:
    snic = type("Address", (), {"family": socket.AF_INET, "address": "10.1.0.7"})
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"eth0": [], "ib0": [snic]})
    monkeypatch.setattr(group, "_resolved_hostname", lambda: "192.0.2.7")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert group.own_address() == address


@pytest.mark.parametrize(
    "environ",
    [
        {"PALS_RANKID": "3", "PALS_LOCAL_RANKID": "1"},
        {"PMIX_RANK": "3"},
        {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1"},
        {"MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
        {**SLURM, "PMI_RANK": "", "PMI_SIZE": "", "OMPI_COMM_WORLD_RANK": "", "PALS_RANKID": ""},
        {**SLURM, "PMIX_RANK": "0"},
    ],
)
def test_ranks_of_other_launchers_are_found_and_empty_variables_are_none(environ) -> None:
    context = launch_context(order(), environ)
    assert (context.rank, context.size, context.slot.rpartition(":")[2]) == (3, 4, "3")


def test_a_launcher_that_names_no_size_cannot_have_more_ranks_than_the_job() -> None:
    with pytest.raises(InvalidSettingError, match="ranks from 0 to 3, as ordered"):
        launch_context(order(), {"PALS_RANKID": "4"})


INSTANCES = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b,MIG-c", "PMI_SIZE": "1", "PMI_RANK": "0"}


def test_a_rank_sees_its_own_mig_instance_only() -> None:
    context = launch_context(order(world_size=1, slots=("n1:2",)), INSTANCES)
    assert (context.environment, context.device_index) == ({"CUDA_VISIBLE_DEVICES": "MIG-c"}, 0)


def test_mig_instances_are_joined_by_gloo_alone() -> None:
    here, environ = (
        order(world_size=2, slots=("n1:0", "n1:2")),
        {**INSTANCES, "PMI_SIZE": "2", "PMI_RANK": "1"},
    )
    with pytest.raises(
        InvalidSettingError, match="ranks of one trial on MIG instances: found 2; allowed: 1,"
    ):
        launch_context(here, environ)
    context = launch_context(here, {**environ, "PARSL_RASDA_BACKEND": "gloo"})
    assert (context.environment, context.device_index) == ({"CUDA_VISIBLE_DEVICES": "MIG-c"}, 0)


@pytest.mark.parametrize(("rank", "own"), [(0, "0"), (1, "1")])
def test_the_mask_of_psslurm_for_one_rank_gives_way_to_that_of_the_job(rank, own) -> None:
    """psslurm gives each of several ranks on a node one GPU, not its slot's (psslurmenv.c, setGPUEnv)."""
    environ = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "CUDA_VISIBLE_DEVICES": own}
    context = launch_context(order(world_size=2, slots=("n1:2", "n1:3")), environ)
    assert (context.environment, context.device_index) == ({"CUDA_VISIBLE_DEVICES": "2,3"}, rank)


def test_the_mask_of_psslurm_for_a_single_rank_has_all_gpus() -> None:
    environ = {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    context = launch_context(order(world_size=1, slots=("n1:3",)), environ)
    assert (context.environment, context.device_index) == ({"CUDA_VISIBLE_DEVICES": "3"}, 0)


@pytest.mark.parametrize(("rank", "size", "local"), LAUNCHERS)
def test_a_trial_without_a_controller_ignores_whatever_launched_it(monkeypatch, rank, size, local) -> None:
    monkeypatch.setenv(rank, "3")
    monkeypatch.setenv(local, "3")
    if size is not None:
        monkeypatch.setenv(size, "4")
    trial = local_trial({})
    assert (trial.rank, trial.world_size) == (0, 1)
