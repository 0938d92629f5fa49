"""Controllers as batch jobs: what is asked for, the script, and when the next job is queued."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.backends.parsl import controller_job
from parsl_rasda.errors import InvalidFileError, InvalidSettingError, SiteUnavailableError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import load_site
from parsl_rasda.study.controller_sites import controller_site, site_inside
from parsl_rasda.study.parsl_site import ParslSiteSpec

SLURM = """
provider:
  type: SlurmProvider
  partition: gpu
  account: ${RASDA_ACCOUNT}
  nodes_per_block: 8
  gpus_per_node: 4
  walltime: "02:00:00"
  worker_init: source /venv; export KEY=${RASDA_KEY}
  scheduler_options: "#SBATCH --hint=nomultithread"
gpus_per_node: 4
address: {interface: hsn0}
controller: {partition: shared, walltime: "24:00:00"}
"""
PBS = SLURM.replace("SlurmProvider", "PBSProProvider").replace("partition", "queue").replace(
    "  gpus_per_node: 4\n  w", "  select_options: ngpus=4\n  w"
).replace("#SBATCH --hint=nomultithread", "#PBS -l place=scatter")  # fmt: skip
_FORGETS = 'unset "$name"'
PROGRAM = """#!/bin/bash
echo "$@" >> {folder}/calls
case "$1" in
  resume) trap 'exit 130' TERM; echo begun >> {folder}/calls; {does} ;;
  submit) exit 0 ;;
esac
"""


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RASDA_ACCOUNT", "project")
    monkeypatch.setenv("RASDA_KEY", "secret")


def site_of(folder: Path, text: str) -> ParslSiteSpec:
    (folder / "big.yaml").write_text(text)
    site = load_site(folder / "big.yaml")
    assert isinstance(site, ParslSiteSpec)
    return site


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put commands on the PATH that take every job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answer in {"sbatch": "Submitted batch job 7", "qsub": "7.server"}.items():
        (folder / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def script_of(folder: Path, text: str, *, inside: bool = False) -> str:
    """Queue the controller of a run, and return its job script."""
    run = RunDirectory(folder / "run")
    run.sites.mkdir(parents=True, exist_ok=True)
    site = site_of(folder, text)
    (run.sites / "big.yaml").write_text(text)
    controller_job.prepare(run, controller_site(site, inside=inside))
    job = controller_job.queue_job(run, is_inside=inside, margin_s=120.0)
    assert controller_job.last_job(run) == job
    return Path(job.log.removesuffix(".stderr").removesuffix(".submit")).read_text(encoding="utf-8")


def test_a_controller_asks_for_a_core_of_its_own_and_not_for_the_gpus(
    tmp_path: Path, batch_system: Path
) -> None:
    script = script_of(tmp_path, SLURM)
    for line in ("--partition=shared", "--account=project", "--nodes=1", "--cpus-per-task=1", "--time=1440"):
        assert f"#SBATCH {line}\n" in f"{script}\n"
    for word in ("--gpus", "--exclusive", "nomultithread", "secret", "--partition=gpu"):
        assert word not in script
    assert script.rindex("--requeue") > script.rindex("--no-requeue"), "the later one counts"
    assert _FORGETS in script, "pilots are not to be asked for with the variables of this job"
    kept = (tmp_path / "run/submitted/site.yaml").read_text()
    assert "secret" not in kept
    assert "${RASDA_KEY}" in kept


def test_a_controller_of_pbs_gets_the_variables_that_its_sites_name(
    tmp_path: Path, batch_system: Path
) -> None:
    script = script_of(tmp_path, PBS)
    assert "#PBS -l select=1:ncpus=1\n" in script
    (passed,) = [line for line in script.splitlines() if " -v" in line and line.startswith("#PBS")]
    names = passed.removeprefix("#PBS -v ").split(",")
    (init,) = [name for name in names if name.startswith("PARSL_RASDA_INIT")]
    assert f"${{{init}:?" in script, "else the job dies on a variable that did not come with it"
    assert {"RASDA_ACCOUNT", "RASDA_KEY"} < {*names}
    assert "#PBS -r y\n" in script
    assert "secret" not in script


@pytest.mark.parametrize("theirs", ["#PBS -v MINE", "#PBS -l place=scatter -v MINE", "#PBS  -vMINE,X='a b'"])
def test_pbs_heeds_one_list_of_variables_in_which_those_of_the_site_are(
    tmp_path: Path, batch_system: Path, theirs: str
) -> None:
    script = script_of(tmp_path, PBS.replace('"#PBS -l place=scatter"', f'"{theirs}"'), inside=True)
    directives = [line for line in script.splitlines() if line.startswith("#PBS")]
    (passed,) = [line for line in directives if " -v" in line]
    for name in ("MINE", "RASDA_ACCOUNT", "PARSL_RASDA_INIT"):
        assert name in passed
    assert ("place=scatter" in script) == ("place" in theirs)
    assert ("X='a b'" in passed) == ("X=" in theirs)


@pytest.mark.parametrize("differs", ["", ", constraint: cpu"])
def test_a_constraint_of_the_pilots_holds_for_their_controller_unless_it_has_its_own(
    tmp_path: Path, batch_system: Path, differs: str
) -> None:
    text = SLURM.replace("  gpus_per_node: 4\n", "  gpus_per_node: 4\n  constraint: gpu\n", 1)
    text = text.replace("{partition: shared", f"{{partition: shared{differs}")
    expected = "cpu" if differs else "gpu"
    assert f"#SBATCH --constraint={expected}\n" in script_of(tmp_path, text)


def test_inside_the_job_is_the_pilot_and_the_site_is_the_allocation(
    tmp_path: Path, batch_system: Path
) -> None:
    script = script_of(tmp_path, SLURM, inside=True)
    for line in ("--nodes=8", "--gpus-per-node=4", "--hint=nomultithread", "--partition=gpu", "--time=120"):
        assert f"#SBATCH {line}" in script
    assert "timeout" not in script, "its controller knows when its allocation ends"
    assert _FORGETS not in script, "it needs Slurm's variables"
    here = site_inside(site_of(tmp_path, SLURM))
    assert (here.is_local, here.takes_all_nodes, here.name, here.address) == (True, True, "big", None)


def test_a_refusal_is_told_in_the_batch_systems_own_words(tmp_path: Path, batch_system: Path) -> None:
    (batch_system / "sbatch").write_text("#!/bin/sh\necho sbatch: error: Invalid account >&2; exit 1\n")
    with pytest.raises(SiteUnavailableError) as refusal:
        script_of(tmp_path, SLURM)
    assert refusal.value.cause == "sbatch: error: Invalid account"


def test_a_batch_system_that_does_not_answer_is_told(tmp_path: Path, batch_system: Path) -> None:
    (batch_system / "sbatch").write_text("#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(SiteUnavailableError, match=r"no answer for 1 s.*may be queued"):
        script_of(tmp_path, SLURM.replace("controller: {", "controller: {cmd_timeout: 1, "))


@pytest.mark.parametrize("kind", ["LocalProvider", "TorqueProvider", "LSFProvider"])
def test_a_site_whose_batch_system_cannot_be_asked_gets_no_controller(tmp_path: Path, kind: str) -> None:
    site = site_of(tmp_path, f"provider: {{type: {kind}}}")
    with pytest.raises(InvalidSettingError, match=rf"big: provider\.type: found '{kind}'.*PBSPro.*tmux"):
        controller_site(site, inside=False)


def test_a_mistake_under_controller_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match=r"controller\.walltime: found 24"):
        site_of(tmp_path, SLURM.replace('"24:00:00"', "24"))


@pytest.mark.parametrize(
    ("does", "code", "queues"),
    [
        ("sleep 60 & wait", 130, True),  # until its time is up
        ("exit 130", 130, True),
        ("exit 0", 0, False),
        ("exit 3", 3, False),
        ("exit 143", 143, False),  # `cancel`
    ],
)
def test_the_next_job_is_queued_only_when_the_controller_was_interrupted(
    tmp_path: Path, batch_system: Path, monkeypatch: pytest.MonkeyPatch, does: str, code: int, queues: bool
) -> None:
    program = batch_system / "parsl-rasda"
    program.write_text(PROGRAM.format(folder=tmp_path, does=does))
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(batch_system / "python"))
    text = SLURM.replace("24:00:00", "00:00:04").replace("source /venv; ", "")
    script = script_of(tmp_path, text)
    environment: dict[str, Any] = {**os.environ, "SLURM_NTASKS": "3"}
    done = subprocess.run(["bash", "-c", script], env=environment, timeout=30, check=False)
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:2] == [f"resume --wait {tmp_path}/run", "begun"]
    assert calls[2:] == ([f"submit --next {tmp_path}/run"] if queues else [])
