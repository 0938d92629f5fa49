"""The whole job script of a pilot on each machine that we ship a file for, as Parsl writes it.

The scripts in `job_scripts/` were written down and read by hand; nothing here writes them.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from parsl_rasda.backends.parsl.htex import build_provider
from parsl_rasda.study import load_site
from parsl_rasda.study.sites import ParslSiteSpec
from tests.shipped.guards import unguarded

SCRIPTS = Path(__file__).parent / "job_scripts"
FOLDER = Path(__file__).parents[2] / "site_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if "Local" not in path.read_text())
ENVIRONMENT = {"RASDA_ACCOUNT": "project", "RASDA_VENV": "/venv", "RASDA_WORK": "/work"}
ANSWERS = {"sbatch": "Submitted batch job 7", "qsub": "7.server"}


@pytest.fixture
def batch_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put commands on the PATH that accept every job, and return the folder for job scripts."""
    for name, answer in ANSWERS.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "$@" > "$0.words"\necho {answer}\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


def script_of(name: str, folder: Path) -> str:
    """Return a site's job script, without empty lines, and how it was handed in."""
    site = load_site(name)
    assert isinstance(site, ParslSiteSpec)
    provider = build_provider(site, "echo ours")
    provider.script_dir = str(folder)
    assert provider.submit("pool --flag", 1, "pilot")
    (path,) = [path for path in folder.iterdir() if not path.name.endswith(("stdout", "stderr"))]
    (asked,) = folder.parent.glob("*.words")
    text = f"{path.read_text()}\n# {asked.stem} {asked.read_text()}"
    text = text.replace(str(folder), "FOLDER").replace(path.name, "NAME")
    text = text.replace(path.name.removesuffix(".submit"), "NAME")
    return "".join(f"{line}\n" for line in text.splitlines() if line)


def test_each_machine_has_its_script() -> None:
    assert sorted(path.stem for path in SCRIPTS.glob("*.sh")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_job_script_of_each_machine_is_what_was_read(name: str, batch_systems: Path) -> None:
    assert unguarded(script_of(name, batch_systems)) == (SCRIPTS / f"{name}.sh").read_text()
