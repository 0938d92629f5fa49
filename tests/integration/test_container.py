"""Ranks in namespaces of their own, with a Python that only they see, behind a stand-in `apptainer`."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SlurmCluster
from studies import wait_until_none_is_left

import parsl_rasda

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

COMMAND = Path(sys.executable).parent / "parsl-rasda"
INSIDE = "/mnt/bin/python"  # where the image is seen inside, and only there

# Processes, mounts and variables of Python as in a container that has none of the host's.
APPTAINER = f"""#!/bin/bash
[ "$1" = exec ] || exit 99
shift
while [ "$1" = --bind ]; do shift 2; done
image=$1
shift
[ -d "$image" ] || {{ echo "FATAL: could not open image $image" >&2; exit 255; }}
unset PYTHONPATH VIRTUAL_ENV
exec unshare --pid --mount --mount-proc --fork --kill-child=KILL \\
  bash -c 'mount --bind "$0" {Path(INSIDE).parents[1]} && "$@"; exit $?' "$image" "$@"
"""
TRAIN = """
import json, os, sys
from pathlib import Path

def train(trial):
    for _ in trial.epochs():
        seen = {"python": sys.executable, "forked": "PARSL_RASDA_FORKED" in os.environ,
                "processes": os.readlink("/proc/self/ns/pid"), "package": sys.modules["parsl_rasda"].__file__}
        (trial.directory / f"seen-{trial.rank}.json").write_text(json.dumps(seen))
        trial.mean([1.0])
        trial.report(val_loss=trial.config["lr"])
"""
STUDY = {
    "name": "contained",
    "seed": 1,
    "tune": {
        "metric": "val_loss",
        "num_samples": 2,
        "scheduler": {"max_t": 2, "num_workers": 2, "max_workers": 2},
        "search_space": {"lr": {"float": [0.1, 0.2]}},
        "training": {"python": "contained_train:train"},
    },
}
LOCAL: dict[str, Any] = {"provider": {"type": "LocalProvider"}, "mpi_launcher": "hydra"}
SLURM: dict[str, Any] = {
    "provider": {
        "type": "SlurmProvider",
        "partition": "main",
        "nodes_per_block": 1,
        "gpus_per_node": 4,
        "walltime": "00:10:00",
    },
    "mpi_launcher": "srun",
    "address": "127.0.0.1",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with this package in it, and whatever else this environment has."""
    try:
        subprocess.run(("unshare", "--pid", "--mount", "--mount-proc", "--fork", "true"), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no namespaces here: {error}")
    folder = tmp_path_factory.mktemp("image")
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "parsl_rasda").symlink_to(Path(parsl_rasda.__file__).parent)
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return folder


def run(folder: Path, where: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    apptainer = folder / "bin/apptainer"
    apptainer.parent.mkdir()
    apptainer.write_text(APPTAINER)
    apptainer.chmod(0o755)
    (folder / "contained_train.py").write_text(TRAIN)
    (folder / "study.yaml").write_text(json.dumps(STUDY))  # JSON is YAML
    declared = {"accelerator": "cpu", "gpus_per_node": 4, "heartbeat_threshold": 5, **where}
    (folder / "site.yaml").write_text(json.dumps(declared))
    path = f"{apptainer.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        (str(COMMAND), "run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json"),
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def assert_contained(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    logs = [path.read_text() for path in (folder / "run/trials").glob("*/*/log.txt")]
    assert done.returncode == 0, (done.stderr, logs)
    assert json.loads(done.stdout)["trials"]["completed"] >= 1
    seen = [json.loads(path.read_text()) for path in (folder / "run/trials").glob("*/*/scratch/seen-*.json")]
    assert len(seen) >= 4
    assert {each["python"] for each in seen} == {INSIDE}
    assert all(each["package"].startswith("/mnt/lib") for each in seen)
    assert str(Path("/proc/self/ns/pid").readlink()) not in {each["processes"] for each in seen}
    assert all(each["forked"] for each in seen), logs
    wait_until_none_is_left(folder)


def test_ranks_of_mpiexec_are_forked_in_the_container(image: Path, tmp_path: Path) -> None:
    container = {"runtime": "apptainer", "image": str(image), "python": INSIDE}
    assert_contained(tmp_path, run(tmp_path, {**LOCAL, "container": container}))


def test_ranks_of_a_job_step_are_forked_in_the_container(image: Path, tmp_path: Path, need: Any) -> None:
    need("slurm")
    container = {"runtime": "apptainer", "image": str(image), "python": INSIDE}
    with SlurmCluster(nodes=1) as cluster:
        done = run(tmp_path, {**SLURM, "container": container}, **cluster.environment)
    assert_contained(tmp_path, done)
