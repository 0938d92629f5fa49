"""Values of a site file's variables may be secret: they are resolved at use, and kept nowhere."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from parsl_rasda.backends.parsl.htex import build_provider
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study import dump_site, load_site
from parsl_rasda.study.parsl_site import ParslSiteSpec

SITE = """\
provider: {type: LocalProvider, worker_init: "export K='${TOKEN}' L=\\"a  ${TOKEN}\\""}
environment: {HF_TOKEN: "${TOKEN}", PORT: "${PORT:-80}", PLAIN: "$${TOKEN}"}
gpus_per_node: ${GPUS}
checkpoint_margin: ${MARGIN}
work_dir: ${HOME}/x
launcher_options: ["--a", "${TOKEN}"]
accelerator: none
mpi_launcher: process
"""
VARIABLES = {"TOKEN": "s3cr3t", "GPUS": "4", "MARGIN": "7.5", "HOME": "/home/u"}


@pytest.fixture
def site(tmp_path: Path) -> ParslSiteSpec:
    (tmp_path / "here.yaml").write_text(SITE)
    found = load_site(tmp_path / "here.yaml", environment=VARIABLES)
    assert isinstance(found, ParslSiteSpec)
    return found


def test_the_copy_of_a_site_has_no_value_of_a_variable_and_is_read_as_the_same_site(
    site: ParslSiteSpec, tmp_path: Path
) -> None:
    (tmp_path / "copy.yaml").write_text(dump_site(site))
    assert "s3cr3t" not in dump_site(site)
    assert "/home/u" not in dump_site(site)
    again = load_site(tmp_path / "copy.yaml", environment=VARIABLES)
    assert again == site
    assert dump_site(again) == dump_site(site)
    assert (again.gpus_per_node, again.checkpoint_margin_s, again.environment["PLAIN"]) == (
        4,
        7.5,
        "${TOKEN}",
    )


def test_a_variable_that_is_missing_when_a_run_goes_on_is_named(site: ParslSiteSpec, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(dump_site(site))
    with pytest.raises(InvalidFileError, match=r"copy.yaml:\d+: environment.HF_TOKEN: .*set TOKEN") as error:
        load_site(tmp_path / "copy.yaml", environment={"GPUS": "4"})
    assert "s3cr3t" not in str(error.value)


def test_a_job_script_has_no_secret_and_runs_with_it(site: ParslSiteSpec, tmp_path: Path) -> None:
    provider = build_provider(site, "echo ours")
    assert "s3cr3t" not in provider.worker_init
    script = provider.worker_init + '\nprintf "%s|%s" "$K" "$L"; env | grep -c "^$NAME="'
    (name,) = re.findall(r": \"\$\{(PARSL_RASDA_INIT\w+):", script)
    script = script.replace("$NAME", name)
    assert name in os.environ
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.stdout == "ours\ns3cr3t|a  s3cr3t0\n"


def test_a_job_without_the_secret_says_so_and_ends(
    site: ParslSiteSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = build_provider(site, "echo ours").worker_init
    clean = {name: value for name, value in os.environ.items() if "PARSL_RASDA_INIT" not in name}
    ran = subprocess.run(["bash", "-c", script], env=clean, capture_output=True, text=True, check=False)
    assert ran.returncode
    assert "ours" not in ran.stdout
    assert "did not come with the job" in ran.stderr


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("PBSProProvider", "#PBS -v PARSL_RASDA_INIT_"),
        ("TorqueProvider", "#PBS -v PARSL_RASDA_INIT_"),
        ("GridEngineProvider", "#$ -v PARSL_RASDA_INIT_"),
    ],
)
def test_batch_systems_that_pass_on_nothing_are_told_to(kind: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "here.yaml").write_text(SITE.replace("LocalProvider", kind))
    site = load_site(tmp_path / "here.yaml", environment=VARIABLES)
    assert isinstance(site, ParslSiteSpec)
    assert line in build_provider(site, "").scheduler_options


def test_the_small_pilot_of_doctor_keeps_secrets_too(tmp_path: Path) -> None:
    text = SITE.replace("accelerator", "doctor: {worker_init: 'export D=${TOKEN}'}\naccelerator")
    (tmp_path / "here.yaml").write_text(text)
    site = load_site(tmp_path / "here.yaml", environment=VARIABLES).for_trial(1, "00:10:00")
    assert "s3cr3t" not in dump_site(site)
    assert isinstance(site, ParslSiteSpec)
    assert "s3cr3t" not in build_provider(site, "").worker_init
