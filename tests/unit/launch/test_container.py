"""Whole commands of containers, written by hand from the manuals of their runtimes."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
from pydantic import ValidationError

from parsl_rasda.agent.endpoint_tasks import TaskContext
from parsl_rasda.backends.allocation import PilotAllocation, inside_of, probe_command, read_allocation
from parsl_rasda.backends.globus import handshake
from parsl_rasda.launch.container import CONTAINED_VARIABLE, exec_words
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.study.containers import ContainerSpec
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName, TrialId

INSIDE = {
    "executable": "/opt/python",
    "rank_client": "/opt/rasda/client.py",
    "gpus": 4,
    "python": "3.12",
    "versions": {"parsl_rasda": version("parsl_rasda"), "torch": "2.9.0"},
}
FOUND: dict[str, Any] = {
    **INSIDE,
    "nodes": ["n1", "n2"],
    "executable": "/site/python",
    "rank_client": "/site/rasda/client.py",
    "deadline": None,
    "age_s": 0.0,
    "inside": INSIDE,
}
ORDER = JobSpec(
    study="s",
    trial=TrialId("t0"),
    attempt=1,
    config={},
    directory="/scratch/run/trials/0001/attempt-1",
    seed=1,
    metric="loss",
    mode="min",
    epoch=0,
    until=2,
    max_epochs=8,
    schedule=((0, 1),),
    world_size=2,
    python="module:function",
    accelerator="cuda",
    search_path=("/home/me/study",),
)
PLACEMENT = Placement(SiteName("s"), PilotId("p"), (NodeSlots(NodeName("n1"), (0, 1)),))
RANK = "/opt/python -S -E -s /opt/rasda/client.py /scratch/run/trials/0001/attempt-1/order.json"
KEEP = "/opt/python -S -E -s /opt/rasda/keeper.py keep"
ENSURE = "/site/python -S -E -s /site/rasda/keeper.py ensure n1 --"
NAMES = (
    "CUDA_VISIBLE_DEVICES FLUX_JOB_SIZE FLUX_TASK_LOCAL_ID FLUX_TASK_RANK MKL_NUM_THREADS MPI_LOCALRANKID "
    "NCCL_DEBUG OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMP_NUM_THREADS "
    "OPENBLAS_NUM_THREADS PALS_LOCAL_RANKID PALS_RANKID PARSL_RASDA_CONTAINED PARSL_RASDA_FORKSERVERS "
    "PARSL_RASDA_FORKSERVER_IDLE_S PARSL_RASDA_JOB PARSL_RASDA_RANK PARSL_RASDA_RUN PARSL_RASDA_SIZE "
    "PMIX_RANK PMI_LOCAL_RANK PMI_RANK PMI_SIZE PYTHONUNBUFFERED ROCR_VISIBLE_DEVICES SLURMD_NODENAME "
    "SLURM_JOB_ID SLURM_LOCALID SLURM_PROCID SLURM_STEP_NUM_TASKS ZE_AFFINITY_MASK"
)
EQUALS = " ".join(f"--env={name}" for name in NAMES.split())
APART = " ".join(f"--env {name}" for name in NAMES.split())
GOLDEN = {
    "apptainer": "apptainer exec --nv --bind /data:/mnt:ro --bind /home/me/study --bind /scratch/run "
    "--bind /tmp --cleanenv image.sif",
    "singularity": "singularity exec --nv --bind /data:/mnt:ro --bind /home/me/study --bind /scratch/run "
    "--bind /tmp --cleanenv image.sif",
    "sarus": "sarus run --mount=type=bind,source=/data,destination=/mnt,readonly "
    "--mount=type=bind,source=/home/me/study,destination=/home/me/study "
    "--mount=type=bind,source=/scratch/run,destination=/scratch/run "
    "--mount=type=bind,source=/tmp,destination=/tmp --cleanenv image.sif",
    "podman-hpc": "podman-hpc run --rm --interactive --gpu --network=host --ipc=host --pid=host "
    f"--userns=keep-id {EQUALS} --volume=/data:/mnt:ro --volume=/home/me/study:/home/me/study "
    "--volume=/scratch/run:/scratch/run --volume=/tmp:/tmp --cleanenv image.sif",
    "enroot": "enroot start --mount /data:/mnt:ro --mount /home/me/study:/home/me/study "
    f"--mount /scratch/run:/scratch/run --mount /tmp:/tmp {APART} --cleanenv image.sif",
}


def site(runtime: str, **fields: Any) -> ParslSiteSpec:
    container = {"runtime": runtime, "image": "image.sif", "options": ["--cleanenv"]}
    container |= {"binds": ["/data:/mnt:ro"], **fields.pop("container", {})}
    declared = {
        "name": "s",
        "provider": {"type": "SlurmProvider"},
        "nodes": 2,
        "gpus_per_node": 4,
        "environment": {"NCCL_DEBUG": "WARN"},
        "container": container,
    }
    return ParslSiteSpec.model_validate(declared | fields)


def read(spec: ParslSiteSpec, **inside: Any) -> PilotAllocation | str:
    found = FOUND | {"inside": INSIDE | inside}
    return read_allocation(spec, found, now=0.0, is_local=False, walltime=None)


def launch_of(spec: ParslSiteSpec, order: JobSpec = ORDER):
    allocation = read(spec)
    assert isinstance(allocation, PilotAllocation)
    return allocation.launch(order, PLACEMENT, spec, build_launcher(spec.mpi_launcher))


@pytest.mark.parametrize("runtime", sorted(GOLDEN))
def test_ranks_and_what_keeps_their_servers_run_behind_the_same_words(runtime: str) -> None:
    launch = launch_of(site(runtime))
    assert " ".join(launch.argv) == f"mpiexec -hosts n1 -ppn 2 -n 2 {GOLDEN[runtime]} {RANK}"
    ensure = f"{ENSURE} mpiexec -hosts {{node}} -ppn 1 -n 1 {GOLDEN[runtime]} {KEEP}"
    assert " ".join(launch.before) == ensure
    assert launch.environment[CONTAINED_VARIABLE] == "1"


def test_a_script_runs_in_the_container_and_needs_no_server() -> None:
    launch = launch_of(site("apptainer"), replace(ORDER, python=None, command=("train",)))
    assert not launch.before
    plain = "/opt/python -Pm parsl_rasda.runtime /scratch/run/trials/0001/attempt-1/order.json"
    assert " ".join(launch.argv).endswith(f"image.sif {plain}")


@pytest.mark.parametrize(
    ("image", "binds", "words"),
    [
        (
            "me/torch:1",
            ["/data:/mnt:ro"],
            "--container-image=me/torch:1 --container-mounts=/data:/mnt:ro,/home/me/study:/home/me/study,"
            "/scratch/run:/scratch/run,/tmp:/tmp --cleanenv",
        ),
        ("/home/me/env.toml", [], "--environment=/home/me/env.toml --cleanenv"),
    ],
)
def test_srun_enters_its_own_container_in_ranks_and_keepers(image: str, binds: list[str], words: str) -> None:
    spec = site("srun", mpi_launcher="srun", container={"image": image, "binds": binds})
    launch = launch_of(spec)
    assert f"--wait=0 {words} {RANK}" in " ".join(launch.argv)
    assert f"--job-name=parsl-rasda-forkserver {words} {KEEP}" in " ".join(launch.before)
    probe = " ".join(probe_command(spec))
    assert probe.startswith("srun --nodes=1 --ntasks=1 --nodelist={node} --overlap --mem=0 --input=none --")
    assert probe.endswith("--cleanenv python3 -Pm parsl_rasda.agent.node_probe cuda")


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("openmpi", "mpiexec --host {node}:1 -n 1 --map-by slot:OVERSUBSCRIBE --bind-to none -x"),
        ("process", "env apptainer"),
        ("srun", "srun --unbuffered --input=none --nodes=1 --ntasks=1 --nodelist={node} --overlap"),
    ],
)
def test_each_launcher_starts_what_keeps_servers_in_a_launch_of_its_own(launcher: str, words: str) -> None:
    launch = launch_of(site("apptainer", mpi_launcher=launcher))
    assert " ".join(launch.before).startswith(f"{ENSURE} {words}")
    assert " ".join(launch.before).endswith(f"{GOLDEN['apptainer']} {KEEP}")


def test_a_site_is_looked_into_by_its_containers_python() -> None:
    words = probe_command(site("apptainer", accelerator="rocm", container={"python": "/opt/python"}))
    assert " ".join(words) == (
        "apptainer exec --rocm --bind /data:/mnt:ro --bind /tmp --cleanenv image.sif "
        "/opt/python -Pm parsl_rasda.agent.node_probe rocm"
    )
    without = ParslSiteSpec.model_validate({"provider": {"type": "SlurmProvider"}})
    assert probe_command(without) == ()
    assert inside_of(without, FOUND) is FOUND


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ({"error": "exit 255: no such image"}, "the container of apptainer does not start: exit 255: no"),
        ({"versions": {"parsl_rasda": None}}, "parsl_rasda is not installed in the container and"),
        ({"gpus": 0}, "the container of apptainer sees no cuda device of the 4 on n1; see container.options"),
    ],
)
def test_a_pilot_whose_container_is_of_no_use_is_refused(inside: dict[str, Any], words: str) -> None:
    assert str(read(site("apptainer"), **inside)).startswith(words)


def test_a_folder_is_bound_once_and_not_again_inside_another() -> None:
    spec = ContainerSpec(runtime="apptainer", image="i", binds=("/scratch",))
    words = " ".join(exec_words(spec, "none", ("/scratch/run", "/home/me", "/home/me/study", "/tmp/x")))
    assert words == "apptainer exec --bind /scratch --bind /home/me --bind /tmp i"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"container": {"runtime": "docker"}}, "container.runtime"),
        ({"container": {"binds": ["data"]}}, "/FOLDER:/INSIDE"),
        ({"container": {"image": " "}}, "container.image"),
        ({"python": "/usr/bin/python"}, "container.python"),
        ({"container": {"runtime": "srun"}}, "mpi_launcher"),
        (
            {"container": {"runtime": "srun", "image": "a.toml"}, "mpi_launcher": {"kind": "srun"}},
            "`mounts` in the .toml file",
        ),
    ],
)
def test_what_no_runtime_could_do_is_refused_by_its_key(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace(".", r"\.").replace("`", ".")):
        site("apptainer", **fields)


def test_doctors_small_pilot_has_the_sites_container_or_its_python() -> None:
    spec = site("apptainer", address=["10.0.0.1", {"interface": "hsn0"}])
    small = spec.for_trial(1, "00:10:00")
    assert (small.container, small.address) == (spec.container, spec.address)
    plain = ParslSiteSpec.model_validate({"provider": {"type": "SlurmProvider"}, "python": "/usr/bin/python"})
    assert plain.for_trial(1, "00:10:00").python == "/usr/bin/python"


def test_client_and_launches_agree_on_how_a_rank_knows_that_it_is_contained() -> None:
    assert client.CONTAINED_VARIABLE == CONTAINED_VARIABLE


def test_an_endpoints_pilot_is_looked_into_and_used_in_the_same_way() -> None:
    endpoint = {"endpoint_id": "4b116d3c-1703-4f8f-9f6f-39921e5864df", "work_dir": "/scratch/work"}
    container = {"runtime": "apptainer", "image": "image.sif"}
    spec = GlobusSiteSpec.model_validate({**endpoint, "nodes": 2, "gpus_per_node": 4, "container": container})
    sender = TaskContext("/scratch/work/s", "m", 1)
    assert handshake.arguments_of(spec, sender)["container"] == probe_command(spec)
    there = {**FOUND, "python": platform.python_version(), "granted": {"n1": 4, "n2": 2}}
    assert handshake.refusal_of(spec, there) is None
    found = handshake.allocation_of(spec, there, now=0.0)
    assert (found.python, found.agent) == ("/opt/python", ("/site/python", "/site/rasda/client.py"))
    assert [len(node.gpus) for node in found.nodes] == [4, 2]
    lost = {**there, "inside": {"error": "exit 1: gone"}}
    refused = "site site: the container of apptainer does not start: exit 1: gone"
    assert handshake.refusal_of(spec, lost) == refused
    plain = GlobusSiteSpec.model_validate({**endpoint, "nodes": 2, "gpus_per_node": 4})
    assert "container" not in handshake.arguments_of(plain, sender)
    assert handshake.allocation_of(plain, there, now=0.0).python == "/site/python"
