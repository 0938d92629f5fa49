"""Plug-ins of a distribution that is not ours: found, built with options, told what is wrong, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
FOREIGN = REPOSITORY / "tests" / "foreign"

STUDY = """\
name: foreign
tune:
  metric: loss
  num_samples: 6
  scheduler:
    kind: tolerant
    tolerance: 0.2
    max_t: 4
    max_workers: 4
    growth: {kind: late, after: 2}
    early: {kind: steady, steps: 3}
  searcher:
    kind: lattice
    step: 0.38
  search_space: {lr: {float: [0.001, 0.1], log: true}}
  training: {python: "training:train"}
"""
SITE = """\
backend: emulated
decay: 1.0
mpi_launcher: {kind: nice, niceness: 7}
gpus_per_node: 4
accelerator: none
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the foreign distribution, as pip installs it."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(FOREIGN))
    subprocess.run([*pip, *options], check=True)
    return target


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Run Python in a folder with a study, with the foreign distribution installed."""
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "training.py").write_text("def train(trial):\n    raise RuntimeError\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(installed)])}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, *words]
        return subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def rasda(*words: str) -> tuple[str, ...]:
    return ("-c", "from parsl_rasda.cli.main import main; main()", *words)


@pytest.mark.slow
def test_they_keep_the_contracts_that_we_ship(run: Run, tmp_path: Path) -> None:
    shutil.copy(FOREIGN / "contracts.py", tmp_path / "test_contracts.py")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_contracts.py")
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_the_manual_shows_the_plug_ins_as_they_run_each_in_under_30_lines() -> None:
    manual = (REPOSITORY / "docs" / "plugins.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", manual, re.DOTALL)
    modules = [path.read_text() for path in (FOREIGN / "rasda_foreign").glob("[!_]*.py")]
    assert len(modules) == 6
    for module in modules:
        assert module in shown
        assert len(module.splitlines()) < 30
    lines = {
        line.rstrip()
        for path in FOREIGN.rglob("*")
        if path.suffix in {".py", ".toml"}
        for line in path.open()
    }
    written = [
        line.rstrip()
        for block in re.findall(r"```(?:python|toml)\n(.*?)```", manual, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [line for line in written if line and line not in lines] == [
        "from parsl_rasda.testing import SchedulerContract"
    ]


@pytest.mark.slow
def test_all_six_run_one_study(run: Run, tmp_path: Path) -> None:
    done = run(*rasda("run", "study.yaml", "--site", "site.yaml", "--dir", "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    (commands,) = (tmp_path / "run").rglob("commands.txt")
    assert commands.read_text().startswith("nice -n 7 train ")
    assert run(*rasda("report", "run")).returncode == 0
    assert "the best so far is" in (tmp_path / "run" / "report.html").read_text(), (
        "the scheduler's own reason"
    )


def test_a_study_and_a_site_with_plug_ins_are_valid(run: Run) -> None:
    done = run(*rasda("validate", "study.yaml", "--site", "site.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 x 1 node, 4 slots each, nice" in done.stdout


def test_editors_and_people_are_told_of_their_options(run: Run) -> None:
    for kind, text, old, new in (
        ("study", STUDY, "tolerance: 0.2", "tolerence: 0.2"),
        ("study", STUDY, "step: 0.38", "step: 2"),
        ("study", STUDY, "after: 2", "after: soon"),
        ("study", STUDY, "steps: 3", "steps: 0"),
        ("site", SITE, "niceness: 7", "nicenes: 7"),
        ("site", SITE, "decay: 1.0", "decay: 0"),
    ):
        check = jsonschema.Draft7Validator(json.loads(run(*rasda("schema", kind)).stdout))
        assert [error.message for error in check.iter_errors(yaml.safe_load(text))] == []
        assert not check.is_valid(yaml.safe_load(text.replace(old, new))), new
    for option, choice in (("tolerance", "tolerant"), ("niceness", "nice"), ("after", "late")):
        assert f"with kind: {choice})" in run(*rasda("explain", option)).stdout
    assert "with backend: emulated)" in run(*rasda("explain", "decay")).stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "study.yaml",
            "tolerance: 0.2",
            "tolerence: 0.2",
            "study.yaml:7: tune.scheduler.tolerence: found an unknown key; allowed: kind, ",
        ),
        (
            "study.yaml",
            "tolerance: 0.2",
            "tolerance: wide",
            "study.yaml:7: tune.scheduler.tolerance: found 'wide'; allowed: a number",
        ),
        (
            "study.yaml",
            "step: 0.38",
            "step: 2",
            "study.yaml:14: tune.searcher.step: found 2; allowed: less than 1",
        ),
        (
            "study.yaml",
            "after: 2",
            "after: soon",
            "study.yaml:10: tune.scheduler.growth.after: found 'soon'; allowed: a whole number",
        ),
        (
            "study.yaml",
            "kind: late",
            "kind: lat",
            "study.yaml:10: tune.scheduler.growth.kind: found 'lat'; "
            "allowed: elastic, strict, none, late (did you mean late?)",
        ),
        (
            "study.yaml",
            "kind: steady",
            "kind: stedy",
            "study.yaml:11: tune.scheduler.early.kind: found 'stedy'; "
            "allowed: none, curve, steady (did you mean steady?)",
        ),
        (
            "study.yaml",
            "kind: tolerant",
            "kind: tolerent",
            "study.yaml:6: tune.scheduler.kind: found 'tolerent'; "
            "allowed: rasda, asha, tolerant (did you mean tolerant?)",
        ),
        (
            "site.yaml",
            "niceness: 7",
            "nicenes: 7",
            "site.yaml:3: mpi_launcher.nicenes: found an unknown key; "
            "allowed: kind, niceness (did you mean niceness?)",
        ),
        ("site.yaml", "decay: 1.0", "decay: 0", "site.yaml:2: decay: found 0; allowed: greater than 0"),
        (
            "site.yaml",
            "backend: emulated",
            "backend: emulate",
            "site.yaml:1: backend: found 'emulate'; allowed: a plug-in: emulated (did you mean emulated?)",
        ),
        (
            "site.yaml",
            "backend: emulated",
            "backend: parsl",
            "site.yaml:1: backend: found 'parsl'; allowed: provider or endpoint_id in its place, or a",
        ),
    ],
)
def test_a_wrong_option_is_told_with_its_file_and_line(
    run: Run, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new))
    done = run(*rasda("validate", "study.yaml", "--site", "./site.yaml"))
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
