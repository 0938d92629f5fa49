"""The scripts that run a study in allocations of its own, one after another: with stand-ins for commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from parsl_rasda.study import load_site
from parsl_rasda.study.parsl_site import ParslSiteSpec

FOLDER = Path(__file__).parents[2] / "site_configs" / "allocation"
QUEUED = {"slurm": "sbatch slurm.sh study.yaml {run}", "pbs": "qsub -v STUDY=study.yaml,RUN={run} pbs.sh"}


def test_the_site_takes_all_of_the_allocation() -> None:
    site = load_site(FOLDER / "site.yaml")
    assert isinstance(site, ParslSiteSpec)
    assert (site.is_local, site.takes_all_nodes) == (True, True)


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("code", [0, 3, 130, 143])
def test_a_job_begins_or_resumes_and_queues_the_next_one_on_130_only(
    tmp_path: Path, kind: str, began: bool, code: int
) -> None:
    first, *rest = calls_of(tmp_path, kind, "run", code, began=began)
    resume = "parsl-rasda resume --wait run"
    assert first == (resume if began else "parsl-rasda run study.yaml --site site.yaml --dir run")
    assert rest == ([QUEUED[kind].format(run="run")] if code == 130 else [])


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_each_task_of_an_array_has_a_run_of_its_own_and_the_next_job_has_the_same(
    tmp_path: Path, kind: str
) -> None:
    """sbatch passes the environment on, so the next job would take itself for a task of the array."""
    task = {"SLURM_ARRAY_TASK_ID": "3"} if kind == "slurm" else {"PBS_ARRAY_INDEX": "3"}
    first, again = calls_of(tmp_path, kind, "run", 130, task=task)
    assert first == "parsl-rasda run study.yaml --site site.yaml --dir run-3"
    assert again == QUEUED[kind].format(run="run-3")
    assert "SLURM_ARRAY_TASK_ID" not in (tmp_path / "inherited").read_text()


def calls_of(
    tmp_path: Path,
    kind: str,
    run: str,
    code: int,
    *,
    began: bool = False,
    task: Mapping[str, str] | None = None,
) -> list[str]:
    """Return what a job calls whose controller ends with that code."""
    for name in ("sbatch", "qsub", "parsl-rasda"):
        ending = f"exit {code}" if name == "parsl-rasda" else ""
        said = f'echo {name} "$@" >> {tmp_path}/calls\nenv > {tmp_path}/inherited'
        (tmp_path / name).write_text(f"#!/bin/bash\n{said}\n{ending}\n")
        (tmp_path / name).chmod(0o755)
    if began:
        (tmp_path / run).mkdir()
        (tmp_path / run / "study.yaml").touch()
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "PBS_O_WORKDIR": str(tmp_path)}
    variables |= {"STUDY": "study.yaml", "RUN": run} if kind == "pbs" else {}
    words = ["bash", str(FOLDER / f"{kind}.sh"), *(("study.yaml", run) if kind == "slurm" else ())]
    environment = {**os.environ, **variables, **(task or {}), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(words, env=environment, timeout=30, check=False).returncode == code
    return (tmp_path / "calls").read_text().splitlines()
