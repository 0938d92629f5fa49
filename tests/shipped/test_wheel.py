"""What the wheel installs, away from this checkout: a package that can copy its workflows and run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = (
    "stages.simulate.for_each={seed: [0, 100]}",
    "stages.simulate.with={grid: 32, snapshots: 32, viscosity: 4.0e-3}",
    "stages.prepare.with={filter_width: 4.0}",
    "tune.num_samples=4",
    "tune.scheduler={max_t: 2, max_workers: 2}",
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with what this one has beside parsl_rasda."""
    place = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    built = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(ROOT))
    subprocess.run([*pip, *built], check=True, timeout=120)
    (wheel,) = place.glob("parsl_rasda-*.whl")
    home = place / "venv"
    venv.create(home, symlinks=True)
    ours = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", vars=ours))
    # Only the folder: .pth files in it, such as that of an editable parsl_rasda, are not read there.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(home / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", str(wheel)], check=True, timeout=120)
    return home / "bin"


def called(programs: Path, folder: Path, *words: str) -> str:
    """Run a program of the environment in a folder, check that it ends well, and return what it says."""
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(programs / words[0]), *words[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_module_called_workflows_is_installed(programs: Path, tmp_path: Path) -> None:
    code = "import importlib.util, parsl_rasda as p; print(importlib.util.find_spec('workflows'), p.__file__)"
    found, package = called(programs, tmp_path, "python", "-c", code).split()
    assert found == "None"
    assert Path(package).is_relative_to(programs.parent)


def test_every_workflow_and_every_site_is_installed(programs: Path) -> None:
    (package,) = programs.parent.glob("lib/python*/site-packages/parsl_rasda")
    shipped = [f for f in (*ROOT.glob("workflows/*/*"), *ROOT.glob("site_configs/**/*")) if f.is_file()]
    assert shipped
    assert [f for f in shipped if not (package / f.relative_to(ROOT)).is_file()] == []


@pytest.mark.parametrize("template", ["cfd", "am", "cv", "autoencoder"])
def test_a_copied_workflow_validates_and_has_a_plan(programs: Path, tmp_path: Path, template: str) -> None:
    called(programs, tmp_path, "parsl-rasda", "init", "mine", "--template", template)
    site = ("--site", "mine/site.yaml")
    called(programs, tmp_path, "parsl-rasda", "validate", "mine/study.yaml", *site)
    plan = json.loads(called(programs, tmp_path, "parsl-rasda", "plan", "mine/study.yaml", *site, "--json"))
    assert plan["stages"]


@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_the_copied_cfd_workflow_runs(programs: Path, tmp_path: Path) -> None:
    called(programs, tmp_path, "parsl-rasda", "init", "mine", "--template", "cfd")
    settings = [word for setting in SHORT for word in ("--set", setting)]
    words = ("run", "mine/study.yaml", "--site", "mine/site.yaml", "--json", *settings)
    document = json.loads(called(programs, tmp_path, "parsl-rasda", *words))
    assert document["state"] == "done"
    assert document["stages"]["evaluate"]["result"]["unseen_ratio"] < 1.2
