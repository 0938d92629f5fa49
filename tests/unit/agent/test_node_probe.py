from __future__ import annotations

import json
import os
import platform
import stat
import sys
import time
from pathlib import Path

import pytest

from parsl_rasda.agent.node_probe import (
    BEGAN_VARIABLE,
    describe_allocation,
    end_of_allocation,
    gpu_count,
    kfd_gpu_count,
    node_names,
)


def test_pbs_lists_a_node_once_per_core_and_we_once() -> None:
    def listing(path: Path) -> str:
        path.write_text("n2\nn2\nn1\nn1\n", encoding="utf-8")
        return str(path)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = listing(Path(folder) / "nodes")
        assert node_names({"PBS_NODEFILE": path}) == ("n2", "n1")
        assert node_names({"LSB_DJOB_HOSTFILE": path}) == ("n2", "n1")


def test_slurm_is_asked_to_spell_its_list_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert node_names({"SLURM_JOB_NODELIST": "n[1-2]"}) == ("n1", "n2")


@pytest.fixture
def batch_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a Slurm and a PBS on the PATH that know one job each."""
    job = {"stime": "Wed Nov 25 09:00:00 2026", "Resource_List": {"walltime": "00:20:00"}}
    pbs = json.dumps({"Jobs": {"8.server": job}})
    for name, words, answer in (
        ("scontrol", "--oneliner show job 7", "JobId=7 JobState=RUNNING EndTime=2026-11-25T10:00:00"),
        ("qstat", "-f -F json 8.server", pbs),
    ):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\n[ "$*" = "{words}" ] && echo \'{answer}\'\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def at(hour: int, minute: int) -> float:
    return time.mktime((2026, 11, 25, hour, minute, 0, 0, 0, -1))


@pytest.mark.usefixtures("batch_systems")
@pytest.mark.parametrize(
    ("environment", "end"),
    [
        ({"SLURM_JOB_ID": "7"}, at(10, 0)),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1500"}, 1500.0),
        ({"SLURM_JOB_ID": "6"}, None),
        ({"PBS_JOBID": "8.server"}, at(9, 20)),
        ({"PBS_JOBID": "9.server"}, None),
        ({}, None),
    ],
)
def test_an_allocations_end_is_what_the_batch_system_says(
    environment: dict[str, str], end: float | None
) -> None:
    assert end_of_allocation(environment) == end


def test_a_pilots_age_counts_from_its_job_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BEGAN_VARIABLE, str(int(time.time()) - 300))
    assert 300 <= describe_allocation("none")["age_s"] < 360
    monkeypatch.delenv(BEGAN_VARIABLE)
    assert describe_allocation("none")["age_s"] == 0.0


def test_without_a_batch_system_it_is_this_machine() -> None:
    assert node_names({}) == (platform.node(),)


def test_cores_that_this_process_may_use_are_slots_where_there_is_no_accelerator() -> None:
    mine = os.sched_getaffinity(0)
    assert gpu_count("cpu") == gpu_count("none") == len(mine)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert gpu_count("cpu") == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        (None, 4),
        ("2,3", 2),
        ("3", 1),
        ("", 0),
        ("0,1,2,3,4,5", 4),
        ("GPU-a,GPU-b", 2),
        ("MIG-a,MIG-b,MIG-c", 3),
    ],
)
def test_gpus_that_a_mask_hides_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str | None, count: int
) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: NVIDIA H100 (UUID: GPU-$i)"; done\n')
    listing.chmod(listing.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert gpu_count("cuda") == count


CPU_NODE = "cpu_cores_count 64\nsimd_count 0\nmem_banks_count 1\n"
GPU_NODE = "cpu_cores_count 0\nsimd_count 440\ndrm_render_minor 128\ngfx_target_version 90010\n"


@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        ((), 0),
        ((CPU_NODE,), 0),
        ((CPU_NODE, CPU_NODE, *[GPU_NODE] * 8), 8),  # two dies a card: eight devices on four cards
        ((CPU_NODE, GPU_NODE, None), 1),  # one that may not be read: another job's
        ((CPU_NODE, GPU_NODE, ""), 1),
        ((CPU_NODE, "simd_count\nnonsense\n"), 0),
    ],
)
def test_amd_gpus_are_counted_by_the_topology_of_the_kernel(
    tmp_path: Path, nodes: tuple[str | None, ...], count: int
) -> None:
    for number, text in enumerate(nodes):
        (tmp_path / str(number)).mkdir()
        if text is None:
            (tmp_path / str(number) / "properties").mkdir()  # root reads any file; a folder is not read
        else:
            (tmp_path / str(number) / "properties").write_text(text)
    assert kfd_gpu_count(tmp_path) == count


def test_gpus_that_only_slurm_knows_of_are_those_of_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("parsl_rasda.agent.node_probe._devices", lambda pattern: [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert gpu_count("cuda") == 0, "a mask alone makes no GPU"
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert gpu_count("cuda") == 2


def test_an_allocation_describes_itself_as_plain_json() -> None:
    found = describe_allocation("none")
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found["executable"] == sys.executable
    assert set(found["versions"]) == {"parsl_rasda", "parsl", "torch"}


def test_a_container_answers_for_itself_whatever_its_image_prints_before() -> None:
    greeting = "import runpy, sys; print('Welcome'); sys.argv = ['', 'none']; runpy.run_module"
    words = (sys.executable, "-c", f"{greeting}('parsl_rasda.agent.node_probe', run_name='__main__')")
    found = describe_allocation("none", words)
    assert found["inside"] == {key: found[key] for key in found["inside"]}
    assert {"executable", "rank_client", "versions", "gpus", "python"} == found["inside"].keys()
    assert "inside" not in describe_allocation("none")


@pytest.mark.parametrize(("mask", "count"), [("", 2), ("1", 1)])
def test_a_mask_that_enroot_made_empty_hides_no_gpu_of_a_container(
    tmp_path: Path, mask: str, count: int
) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: A'; echo 'GPU 1: B'\n")
    listing.chmod(0o755)
    variables = (f"PATH={tmp_path}:/usr/bin:/bin", f"CUDA_VISIBLE_DEVICES={mask}")
    words = ("env", *variables, sys.executable, "-m", "parsl_rasda.agent.node_probe", "cuda")
    assert describe_allocation("none", words)["inside"]["gpus"] == count


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit('FATAL: no image')", "exit 1: FATAL: no image"),
        ("import sys; sys.exit(7)", "exit 7: nothing on stderr"),
        ("", "exit 0: nothing on stderr"),
    ],
)
def test_a_container_that_does_not_answer_is_told_in_its_own_words(script: str, words: str) -> None:
    assert describe_allocation("none", (sys.executable, "-c", script))["inside"] == {"error": words}


def test_a_runtime_that_is_not_there_is_told() -> None:
    found = describe_allocation("none", ("no-such-runtime", "exec"))["inside"]
    assert found == {"error": "no-such-runtime cannot be started: No such file or directory"}
