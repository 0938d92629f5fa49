"""Each site file keeps to what its centre allows: the table in `centres.yaml`, against whole job scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from parsl_rasda.doctor.examination import Doctor
from parsl_rasda.plugins import kind_of
from parsl_rasda.study import load_site
from parsl_rasda.study.controller_sites import controller_site
from parsl_rasda.study.parsl_site import ParslSiteSpec
from tests.shipped.submitted import ENVIRONMENT, SITE_CONFIGS, put_batch_systems_on_path, script_of

TABLE = Path(__file__).parent / "centres.yaml"
CENTRES: Mapping[str, Mapping[str, Any]] = yaml.safe_load(TABLE.read_text())
GENERAL = {"local", "workstation", "template_slurm", "template_pbs"}
MACHINES = sorted(path.stem for path in SITE_CONFIGS.glob("*.yaml") if path.stem not in GENERAL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", put_batch_systems_on_path(tmp_path))
    for name, value in {**ENVIRONMENT, "RASDA_WORK": str(tmp_path / "work")}.items():
        monkeypatch.setenv(name, value)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (tmp_path / "work").mkdir()
    return scripts


def site_of(name: str) -> ParslSiteSpec:
    site = load_site(name)
    assert isinstance(site, ParslSiteSpec)
    return site


def request_of(script: str) -> dict[str, str]:
    """Return what a job script asks the batch system for, under Slurm's names."""
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    for key, name in {"q": "partition", "A": "account"}.items():
        if found := re.search(rf"^# qsub .*-{key} (\S+)", script, re.MULTILINE):
            asked[name] = found[1]
    if found := re.search(r"^#PBS -l select=(\d+):ncpus=(\d+)", script, re.MULTILINE):
        asked |= {"nodes": found[1], "cpus-per-task": found[2]}
    if found := re.search(r"^#PBS -l walltime=(\d+):(\d+):(\d+)", script, re.MULTILINE):
        asked["time"] = str(60 * int(found[1]) + int(found[2]))
    return asked


def complaints(
    site: ParslSiteSpec, script: str, row: Mapping[str, Any], *, is_test: bool, has_gpus: bool = True
) -> Iterator[str]:
    """Yield what a centre would refuse, or not want."""
    asked = request_of(script)
    name = "/".join(asked[key] for key in ("partition", "qos") if key in asked)
    queue = row["queues" if has_gpus else "of_cores"].get(name)
    if queue is None:
        yield f"no queue {name!r}"
        return
    least, most = queue["nodes"]
    if not least <= int(asked["nodes"]) <= most:
        yield f"{asked['nodes']} nodes in {name}"
    if int(asked["time"]) > 60 * queue["hours"]:
        yield f"{asked['time']} min in {name}"
    if queue.get("tests") and not is_test:
        yield f"{name} is for tests"
    if row["account"] and not asked.get("account"):
        yield "no account"
    if int(asked.get("cpus-per-task", 0)) > row["cores"]:
        yield f"{asked['cpus-per-task']} cores of a node"
    gpus = asked.get("gpus-per-node") or asked.get("gres", "").rpartition(":")[2]
    if gpus and int(gpus) != row["gpus"]:
        yield f"{gpus} GPUs of a node"
    everything = "\n".join((script, str(site.provider.options.get("worker_init")), *site.launcher_options))
    wanted = (*row.get("asks", ()), *(row.get("gpu_asks", ()) if has_gpus else ()))
    yield from (f"{word!r} is missing" for word in wanted if word not in everything)
    yield from (f"{word!r} is forbidden" for word in row.get("forbids", ()) if word in everything)


def test_each_machine_has_its_limits_and_no_other() -> None:
    assert sorted(CENTRES) == MACHINES


@pytest.mark.parametrize("name", MACHINES)
def test_a_pilot_is_one_that_its_centre_takes(name: str, folder: Path) -> None:
    site = site_of(name)
    assert list(complaints(site, script_of(site, folder), CENTRES[name], is_test=False)) == []


@pytest.mark.parametrize("name", MACHINES)
def test_doctors_pilot_is_one_that_its_centre_takes(name: str, folder: Path) -> None:
    site = Doctor(site_of(name)).site
    assert isinstance(site, ParslSiteSpec)
    assert list(complaints(site, script_of(site, folder), CENTRES[name], is_test=True)) == []


@pytest.mark.parametrize("name", MACHINES)
def test_the_job_of_a_controller_is_one_that_its_centre_takes(name: str, folder: Path) -> None:
    asked, row = controller_site(site_of(name), inside=False), CENTRES[name]
    row = {**row, "of_cores": row.get("of_cores", row["queues"])}
    assert list(complaints(asked, script_of(asked, folder), row, is_test=False, has_gpus=False)) == []


@pytest.mark.parametrize("name", MACHINES)
def test_ranks_fit_the_nodes_of_their_centre(name: str) -> None:
    site, row = site_of(name), CENTRES[name]
    assert site.gpus_per_node == row["gpus"]
    assert site.threads_per_rank * row["gpus"] <= row["cores"]
    assert kind_of(site.mpi_launcher) == row["launcher"]
    address = yaml.safe_load((SITE_CONFIGS / f"{name}.yaml").read_text()).get("address", {})
    assert address.get("interface") == row.get("interface"), "where compute nodes reach a login node"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("aurora", ("capacity", "prod"), "4 nodes in prod"),
        ("aurora", ("filesystems=", "fs="), "'-l filesystems=' is missing"),
        ("polaris", ("-A project", ""), "no account"),
        ("frontier", ("--time=120", "--time=121"), "121 min in batch"),
        ("frontier", ("--cpus-per-task=56", "--cpus-per-task=64"), "64 cores of a node"),
        ("marenostrum5_acc", ("--qos=acc_ehpc", "--qos=acc_debug"), "acc/acc_debug is for tests"),
        ("deucalion", ("--nodes=4", "--nodes=5"), "5 nodes in normal-a100-40"),
        ("juwels_booster", ("--partition=booster", "--partition=boster"), "no queue 'boster'"),
        ("karolina", ("--gpus-per-node=8", "--gpus-per-node=4"), "4 GPUs of a node"),
        ("alps_daint", ("#SBATCH --job-name", "#SBATCH --uenv"), "'#SBATCH --uenv' is forbidden"),
    ],
)  # fmt: skip
def test_what_a_centre_refuses_is_noticed(
    name: str, change: tuple[str, str], said: str, folder: Path
) -> None:
    site = site_of(name)
    script = script_of(site, folder).replace(*change)
    assert said in set(complaints(site, script, CENTRES[name], is_test=False))


@pytest.mark.parametrize("name", MACHINES)
def test_each_machine_names_its_pages_with_their_date_and_what_they_do_not_say(name: str) -> None:
    text = (SITE_CONFIGS / f"{name}.yaml").read_text()
    header = text[: text.index("provider:")]
    (pages,) = re.findall(r"^# From: (.*?)^# By page: ", header, re.MULTILINE | re.DOTALL)
    assert re.search(r"\d{4}-\d\d-\d\d\)", pages), "the day on which the pages were as read"
    assert re.search(r"^# By page: \S", header, re.MULTILINE)
    assert re.search(r"^# Assumed: \S", header, re.MULTILINE)


def test_the_table_of_the_readme_has_each_machine_once() -> None:
    text = (SITE_CONFIGS / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|(.*)\|(.*)\|$", text, re.MULTILINE)
    assert [name for name, *_ in rows] == MACHINES
    assert all(re.search(r"^ no $|\d{4}-\d\d-\d\d", run) for *_, run in rows), "on which day, if it was run"
