"""The whole job script of a pilot on each machine that we ship a file for, as Parsl writes it.

The scripts in `job_scripts/` were written down and read by hand; nothing here writes them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.study import load_site
from parsl_rasda.study.controller_sites import controller_site
from parsl_rasda.study.parsl_site import ParslSiteSpec
from tests.shipped.submitted import ENVIRONMENT, SITE_CONFIGS, put_batch_systems_on_path, script_of

SCRIPTS = Path(__file__).parent / "job_scripts"
CONTROLLERS = SCRIPTS / "controllers"
NAMES = sorted(path.stem for path in SITE_CONFIGS.glob("*.yaml") if "Local" not in path.read_text())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put commands on the PATH that accept every job, and return the folder for job scripts."""
    monkeypatch.setenv("PATH", put_batch_systems_on_path(tmp_path))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    return scripts


def test_each_machine_has_its_script() -> None:
    assert sorted(path.stem for path in SCRIPTS.glob("*.sh")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_job_script_of_each_machine_is_what_was_read(name: str, folder: Path) -> None:
    site = load_site(name)
    assert isinstance(site, ParslSiteSpec)
    assert script_of(site, folder) == (SCRIPTS / f"{name}.sh").read_text()


def test_each_machine_that_asks_otherwise_for_a_controller_has_that_script() -> None:
    names = [name for name in NAMES if "\ncontroller:" in (SITE_CONFIGS / f"{name}.yaml").read_text()]
    assert sorted(path.stem for path in CONTROLLERS.glob("*.sh")) == names


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONTROLLERS.glob("*.sh"))])
def test_the_job_script_of_a_controller_on_each_machine_is_what_was_read(name: str, folder: Path) -> None:
    site = load_site(name)
    assert isinstance(site, ParslSiteSpec)
    asked = script_of(controller_site(site, inside=False), folder)
    assert asked == (CONTROLLERS / f"{name}.sh").read_text()
