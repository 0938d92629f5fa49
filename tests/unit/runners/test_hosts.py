from __future__ import annotations

import os
import platform
import stat
import sys
from pathlib import Path

import pytest

from parsl_rasda.runners.hosts import describe_allocation, gpu_count, node_names


def test_pbs_lists_a_node_once_per_core_and_we_once() -> None:
    def listing(path: Path) -> str:
        path.write_text("n2\nn2\nn1\nn1\n")
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


def test_without_a_batch_system_it_is_this_machine() -> None:
    assert node_names({}) == (platform.node(),)


def test_cores_are_slots_where_there_is_no_accelerator() -> None:
    assert gpu_count("cpu") == gpu_count("none") == os.cpu_count()


def test_an_allocation_describes_itself_as_plain_json() -> None:
    found = describe_allocation("none")
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found["executable"] == sys.executable
    assert set(found["versions"]) == {"parsl_rasda", "parsl", "torch"}
