"""What decides which server serves a rank, and whether one may be started here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import parsl_rasda
from parsl_rasda import prctl
from parsl_rasda.agent import orphan_reaper, warden
from parsl_rasda.launch import base as launch
from parsl_rasda.runtime.process.forkserver import client, server

HERE = {"PATH": "/bin", "OMP_NUM_THREADS": "1", client.RUN_VARIABLE: "r"}


def test_the_clients_copies_equal_the_originals() -> None:
    assert client.RUN_VARIABLE == orphan_reaper.RUN_VARIABLE
    assert client.JOB_VARIABLE == orphan_reaper.JOB_VARIABLE
    assert client.PR_SET_PDEATHSIG == prctl.PR_SET_PDEATHSIG
    assert client.TORCH_VARIABLE == launch.TORCH_VARIABLE


def test_a_change_in_any_folder_of_the_runtime_needs_another_server() -> None:
    package = Path(parsl_rasda.__file__).parent
    folders = {path.parent for path in (package / "runtime").rglob("*.py")}
    assert {package / name for name in client.SOURCES} == {package, *folders}


def test_a_rank_finds_what_it_needs_loaded() -> None:
    for name in {*server.OF_TORCH, *server.OF_EVERY_RANK} - server.OPTIONAL:
        assert find_spec(name), name


@pytest.mark.parametrize(
    "changed",
    [
        {"OMP_NUM_THREADS": "2"},
        {"LD_PRELOAD": "x.so"},
        {"PYTHONPATH": "/mine"},
        {client.RUN_VARIABLE: "s"},
        {client.TORCH_VARIABLE: "0"},
    ],
)
def test_what_libraries_read_when_they_load_needs_a_server_of_its_own(changed) -> None:
    assert client.identity(HERE) != client.identity(HERE | changed)


@pytest.mark.parametrize("changed", [{"PMI_RANK": "3"}, {"CUDA_VISIBLE_DEVICES": "1"}, {"PATH": "/usr/bin"}])
def test_what_only_the_rank_reads_does_not(changed) -> None:
    assert client.identity(HERE) == client.identity(HERE | changed)


def test_another_interpreter_or_package_needs_another_server(tmp_path, monkeypatch) -> None:
    before = client.identity(HERE)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    site = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    empty = client.identity(HERE)
    (site / "torch-9.dist-info").mkdir()
    installed = client.identity(HERE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert len({before, empty, installed, client.identity(HERE)}) == 4


@pytest.mark.parametrize(
    ("groups", "passes"),
    [
        ("0::/system.slice/slurmstepd.scope/job_7/step_3/user/task_0\n", True),
        ("0::/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0\n", False),
        ("4:memory:/slurm/uid_0/job_7/step_interactive\n", False),
        ("0::/system.slice/slurmstepd.scope/job_7/step_extern/user/task_special\n", False),
        ("0::/user.slice\n", False),
    ],
)
def test_no_server_is_started_where_it_would_end_with_the_step(groups, passes) -> None:
    assert client.is_passing(groups) is passes


@pytest.mark.parametrize("program", [client, warden])
def test_a_process_of_each_start_loads_nothing_but_a_few_modules_of_the_standard_library(program) -> None:
    file = Path(program.__file__)
    code = f"import sys; sys.path.insert(0, {str(file.parent)!r}); import {file.stem}; print(*sys.modules)"
    done = subprocess.run(
        (sys.executable, "-S", "-E", "-s", "-c", code), capture_output=True, text=True, check=True
    )
    costly = {"typing", "_hashlib", "pathlib", "subprocess", "logging", "torch", "parsl_rasda"}
    assert not costly & {*done.stdout.split()}


@pytest.mark.parametrize("variables", [{}, {"PMI_RANK": "1"}, {"SLURM_PROCID": "1"}])
def test_the_first_process_of_a_container_is_no_orphan_and_ends_as_its_rank_has_ended(variables) -> None:
    """A signal that it sends to itself does nothing there."""
    program = f"import sys; sys.path.insert(0, {str(Path(client.__file__).parent)!r}); import client\n"
    program += "client.die_with_launcher(); client.leave_as(-15)"
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    if subprocess.run((*unshare, "true"), check=False, capture_output=True).returncode:
        pytest.skip("no namespaces here")
    for shim in ((), ("sh", "-c", '"$@"; exit $?', "sh")):  # its parent is 0, or 1: the container's own
        done = subprocess.run(
            (*unshare, *shim, sys.executable, "-c", program), check=False, env={**os.environ, **variables}
        )
        assert done.returncode in {128 + 15, -15}


def test_a_descriptor_that_did_not_come_through_a_container_is_not_passed_on() -> None:
    reading, writing = os.pipe()
    assert client.is_open(str(reading))
    os.close(reading)
    os.close(writing)
    assert not client.is_open(str(reading))
    assert not client.is_open("")
