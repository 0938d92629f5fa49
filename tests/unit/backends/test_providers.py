"""Whole job scripts, as Parsl hands them to each batch system for one of our pilots."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.agent.node_probe import node_names
from parsl_rasda.backends.parsl.htex import build_executor, build_provider, checked, launch_command
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study import load_site
from parsl_rasda.study.parsl_site import ParslSiteSpec

ANSWERS = {
    "qsub": 'echo "$@" > "$0.words"; if [ -n "$SGE" ]; then echo Your job 7 is in; else echo 7.server; fi',
    "bsub": "echo 'Job <7> is submitted to queue <q>.'",
    "sbatch": "echo Submitted batch job 7",
    "condor_submit": "echo '1 job(s) submitted to cluster 7.'",
    "sacct": "exit 1",
}

INIT = """\
trap 'parsl_rasda_init=$?; [ -n "${parsl_rasda_ready-}" ] || { echo "parsl_rasda: worker_init failed \
with exit status $parsl_rasda_init: $BASH_COMMAND" >&2; \
exit $((parsl_rasda_init ? parsl_rasda_init : 1)); }' EXIT
set -e
module load conda
set +eu; parsl_rasda_ready=1"""
PBS = """\
#!/bin/bash
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=01:00:00
#PBS -l select=2:ncpus=64:ngpus=4
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
#PBS -l place=scatter
export PARSL_RASDA_BEGAN=$(date +%s)
{init}
echo ours
export JOBNAME="NAME"
pool --flag
"""
SLURM = """\
#!/bin/bash
#SBATCH --job-name=NAME
#SBATCH --output=FOLDER/NAME.stdout
#SBATCH --error=FOLDER/NAME.stderr
#SBATCH --nodes=2
#SBATCH --time=60
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --hint=nomultithread
#SBATCH --exclusive
#SBATCH --partition=booster
#SBATCH --account=project
#SBATCH --gpus-per-node=4
export PARSL_RASDA_BEGAN=$(date +%s)
{init}
echo ours
export JOBNAME="NAME"
pool --flag
"""
LSF = """\
#!/bin/bash
#BSUB -W 60
#BSUB -J NAME
#BSUB -o FOLDER/NAME.stdout
#BSUB -e FOLDER/NAME.stderr
#BSUB -alloc_flags gpumps
#BSUB -P project
#BSUB -q batch
#BSUB -nnodes 2
export PARSL_RASDA_BEGAN=$(date +%s)
{init}
echo ours
export JOBNAME="NAME"
pool --flag
"""
GRID_ENGINE = """\
#!/bin/bash
#$ -S /bin/bash
#$ -o FOLDER/NAME.stdout
#$ -e FOLDER/NAME.stderr
#$ -cwd
#$ -l h_rt=01:00:00
#$ -pe mpi 2
export PARSL_RASDA_BEGAN=$(date +%s)
{init}
echo ours
export JOBNAME="NAME"
pool --flag
"""
TORQUE = """\
#!/bin/bash
#PBS -W group_list=project
#PBS -S /bin/bash
#PBS -N NAME
#PBS -m n
#PBS -l walltime=01:00:00
#PBS -l nodes=2:ppn=1
#PBS -o FOLDER/NAME.stdout
#PBS -e FOLDER/NAME.stderr
export PARSL_RASDA_BEGAN=$(date +%s)
{init}
echo ours
export JOBNAME="NAME"
pool --flag
"""
CONDOR = """\
universe                = vanilla
should_transfer_files   = YES
when_to_transfer_output = ON_EXIT_OR_EVICT
Transfer_Executable     = false
transfer_input_files    = FOLDER/NAME.script
machine_count           = 1
output                  = FOLDER/NAME.stdout
error                   = FOLDER/NAME.stderr
log                     = FOLDER/NAME.log
executable              = /bin/bash
arguments               = NAME.script
requirements            = TARGET.CUDACapability >= 8
+projectname            = project
leave_in_queue          = TRUE
environment             = "JOBNAME='NAME'"
request_gpus = 4
queue
"""
SCRIPTS: dict[str, tuple[dict[str, Any], str]] = {
    "PBSProProvider": (
        {
            "account": "project",
            "queue": "prod",
            "cpus_per_node": 64,
            "select_options": "ngpus=4",
            "scheduler_options": "#PBS -l place=scatter",
        },
        PBS,
    ),
    "SlurmProvider": (
        {
            "account": "project",
            "partition": "booster",
            "gpus_per_node": 4,
            "scheduler_options": "#SBATCH --hint=nomultithread",
        },
        SLURM,
    ),
    "LSFProvider": (
        {"project": "project", "queue": "batch", "scheduler_options": "#BSUB -alloc_flags gpumps"},
        LSF,
    ),
    "GridEngineProvider": ({"scheduler_options": "#$ -pe mpi 2"}, GRID_ENGINE),
    "TorqueProvider": (
        {"account": "project", "queue": "batch", "scheduler_options": "#PBS -W group_list=project"},
        TORQUE,
    ),
}


@pytest.fixture
def batch_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put commands on the PATH that accept every job, and return the folder for job scripts."""
    for name, answer in ANSWERS.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{answer}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_job_script_of_a_pilot_is_what_the_batch_system_needs(
    kind: str, batch_systems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "GridEngineProvider":
        monkeypatch.setenv("SGE", "1")
    options, expected = SCRIPTS[kind]
    site = ParslSiteSpec.model_validate(
        {
            "name": "site",
            "nodes": 2,
            "provider": {"type": kind, "walltime": "01:00:00", "worker_init": "module load conda", **options},
        }
    )
    provider = build_provider(site, "echo ours")
    provider.script_dir = str(batch_systems)
    assert provider.submit("pool --flag", 1, "pilot")
    (script,) = [path for path in batch_systems.iterdir() if not path.name.endswith(("stdout", "stderr"))]
    text = script.read_text().replace(str(batch_systems), "FOLDER").replace(script.name, "NAME")
    written = text.replace(script.name.removesuffix(".submit"), "NAME").splitlines()
    assert [line for line in written if line] == expected.replace("{init}", INIT).splitlines()
    if "queue" in options and "account" in options:
        words = (batch_systems.parent / "qsub.words").read_text().split()
        assert words == ["-q", options["queue"], "-A", options["account"], str(script)]
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (0, 0, 1)


def test_a_pilot_on_nodes_that_may_be_shared_asks_for_the_cores_of_its_ranks(batch_systems: Path) -> None:
    shared = {"type": "SlurmProvider", "exclusive": False, "walltime": "01:00:00"}
    site = ParslSiteSpec.model_validate(
        {"name": "site", "gpus_per_node": 4, "threads_per_rank": 8, "provider": shared}
    )
    provider = build_provider(site, "echo ours")
    provider.script_dir = str(batch_systems)
    assert provider.submit("pool --flag", 1, "pilot")
    (script,) = [path for path in batch_systems.iterdir() if not path.name.endswith(("stdout", "stderr"))]
    lines = script.read_text().splitlines()
    assert "#SBATCH --cpus-per-task=32" in lines
    assert "#SBATCH --exclusive" not in lines


def test_the_job_of_a_pilot_under_htcondor_is_one_node_with_its_gpus(batch_systems: Path) -> None:
    site = ParslSiteSpec.model_validate(
        {
            "name": "site",
            "nodes": 1,
            "provider": {
                "type": "CondorProvider",
                "project": "project",
                "requirements": "TARGET.CUDACapability >= 8",
                "scheduler_options": "request_gpus = 4",
                "worker_init": "module load conda",
            },
        }
    )
    provider = build_provider(site, "echo ours")
    provider.script_dir = str(batch_systems)
    assert provider.submit("pool --flag", 1, "pilot")
    (description,), (script,) = (list(batch_systems.glob(f"*.{kind}")) for kind in ("submit", "script"))
    text = description.read_text().replace(str(batch_systems), "FOLDER").replace(description.stem, "NAME")
    assert [line for line in text.splitlines() if line] == CONDOR.splitlines()
    assert script.read_text().splitlines()[0] == "export PARSL_RASDA_BEGAN=$(date +%s)"
    lines = [line for line in script.read_text().splitlines()[1:] if line]
    assert lines == [*INIT.splitlines(), "echo ours", "pool --flag"]


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ({"type": "KubernetesProvider", "image": "x"}, "a pod is one container"),
        ({"type": "AWSProvider", "image_id": "x"}, "without a shared file system"),
        ({"type": "CondorProvider", "nodes_per_block": 2}, "no list of several nodes"),
    ],
)
def test_providers_that_cannot_hold_a_pilot_are_refused_by_their_line(
    tmp_path: Path, provider: dict[str, Any], said: str
) -> None:
    lines = "".join(f"  {key}: {value}\n" for key, value in provider.items())
    path = tmp_path / "site.yaml"
    path.write_text(f"provider:\n{lines}accelerator: cuda\n")
    with pytest.raises(InvalidFileError) as caught:
        load_site(str(path))
    assert said in str(caught.value)
    assert "site.yaml:" in str(caught.value)


@pytest.mark.parametrize(("kind", "polling_s"), [("SlurmProvider", 15), ("LocalProvider", 1)])
def test_parsls_slow_defaults_are_overridden(kind: str, polling_s: int) -> None:
    site = ParslSiteSpec.model_validate(
        {"name": "site", "provider": {"type": kind}, "heartbeat_threshold": 12, "address": "127.0.0.1"}
    )
    executor = build_executor(
        site,
        "site-0",
        workers=3,
        addresses=("127.0.0.1",),
        worker_init="",
        mark="mark",
        on_states=lambda label, states: None,
    )
    assert executor.status_polling_interval == polling_s, "60 of Parsl's"
    assert (executor.heartbeat_period, executor.heartbeat_threshold) == (2, 12), "30 and 120 of Parsl's"


@pytest.mark.parametrize(
    ("options", "folder", "wanted"),
    [
        ({}, "an own {environment}", "an own {environment}/parsl-rasda-workers"),
        ({}, "not there", "parsl-rasda-workers"),
        ({"worker_init": "conda activate mine"}, "an own {environment}", "parsl-rasda-workers"),
    ],
)
def test_workers_are_of_the_controllers_own_environment_unless_the_site_chooses_one(
    options: dict[str, str], folder: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("an own {environment}", "first on PATH"):
        Path(name).mkdir()
        Path(name, "parsl-rasda-workers").write_text('#!/bin/sh\necho "$0"\n', encoding="utf-8")
        Path(name, "parsl-rasda-workers").chmod(0o755)
    monkeypatch.setattr("sys.executable", f"{folder}/python")
    site = {"name": "site", "provider": {"type": "LocalProvider", **options}}
    command = launch_command(ParslSiteSpec.model_validate(site)).partition(" {debug}")[0].format().format()
    path = f"{tmp_path}/first on PATH:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", command], env={"PATH": path}, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip().removeprefix(f"{tmp_path}/first on PATH/") == wanted


def test_grid_engine_lists_a_node_a_line_with_its_slots(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("n2 4 all.q@n2 <NULL>\nn1 4 all.q@n1 <NULL>\n")
    assert node_names({"PE_HOSTFILE": str(hosts)}) == ("n2", "n1")


def shell(init: str, **options: bool) -> subprocess.CompletedProcess[str]:
    lines = f"{checked(init, **options)}\nfalse\necho pool$not_set_anywhere"
    return subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("init", "status", "words"),
    [
        ("source /none/activate", 1, "/none/activate: No such file or directory"),
        ("source /none/activate", 1, "worker_init failed with exit status 1: source /none/activate"),
        ("module load torch\ntrue", 127, "failed with exit status 127: module load torch"),
        ("loads() { return 3; }\nloads; true", 3, "failed with exit status 3: return 3"),
        ("exit 0", 1, "worker_init failed with exit status 0: exit 0"),
        ("echo 'unfinished", 2, "unexpected EOF"),
        ("set -eu\nfalse", 1, "worker_init failed with exit status 1: false"),
        ('set -u\necho "$not_set_anywhere"', 1, "worker_init failed with exit status 1"),
    ],
)
def test_a_pilot_ends_where_its_worker_init_fails_and_says_at_what(
    init: str, status: int, words: str
) -> None:
    done = shell(init)
    assert (done.stdout, done.returncode) == ("", status)
    assert words in done.stderr


@pytest.mark.parametrize(
    "init",
    ["", "true", "no-such-command || true", "set +e\nno-such-command", "false && true; true", "set -eu"],
)
def test_a_worker_init_that_succeeds_changes_nothing_for_what_comes_after_it(init: str) -> None:
    done = shell(init)
    assert (done.stdout, done.returncode) == ("pool\n", 0)


def test_a_trap_of_the_sites_own_is_kept() -> None:
    assert shell("trap 'echo cleaned' EXIT").stdout == "pool\ncleaned\n"


def test_lines_that_are_secret_are_not_shown_when_they_fail() -> None:
    done = shell("no-such-command --token=hidden", is_secret=True)
    assert "worker_init failed with exit status 127" in done.stderr
    assert "hidden" not in done.stderr
