"""Tests that passed only at the second try are named, and too many of them fail a run of CI."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOLD = runpy.run_path(str(REPOSITORY / ".ci" / "second_try.py"))
FLAKY = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({flaky}))
def test_flaky(number):
    been = Path(__file__).with_name(f"been-{{number}}")
    been.touch() if (missing := not been.exists()) else None
    assert not missing

def test_good(): pass

def test_broken(): assert {works}
"""


def cache_of(folder: Path, first: list[str] | None, last: list[str]) -> str:
    (folder / "v" / "cache").mkdir(parents=True)
    (folder / "v" / "cache" / "lastfailed").write_text(json.dumps(dict.fromkeys(last, True)))
    if first is not None:
        (folder / "first_try.json").write_text(json.dumps(dict.fromkeys(first, True)))
    return str(folder)


def test_what_fails_twice_is_not_among_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = cache_of(tmp_path / "a", ["t.py::x", "t.py::y"], ["t.py::y"])
    other = cache_of(tmp_path / "b", None, ["t.py::z"])
    assert TOLD["main"]([one, other, str(tmp_path / "never run")]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  t.py::x"]


@pytest.mark.parametrize(("each", "code"), [((0, 0), 0), ((2, 1), 0), ((2, 2), 1), ((4, 0), 1)])
def test_more_than_three_in_all_fail_the_run(
    each: tuple[int, int], code: int, tmp_path: Path, capsys
) -> None:
    folders = [cache_of(tmp_path / str(n), [f"{n}::{i}" for i in range(m)], []) for n, m in enumerate(each)]
    assert TOLD["main"](folders) == code
    assert len(capsys.readouterr().out.splitlines()) == (sum(each) + 1 if sum(each) else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flaky", "works", "code"), [(0, True, 0), (3, True, 0), (4, True, 1), (1, False, 1)]
)
def test_the_run_of_ci_tries_again_what_failed(flaky: int, works: bool, code: int, tmp_path: Path) -> None:
    """Its own lines, with a test module of four kinds of test instead of the repository's."""
    (tmp_path / "test_it.py").write_text(FLAKY.format(flaky=flaky, works=works))
    (tmp_path / "Makefile").write_text(
        f"test:\n\t@{sys.executable} -m pytest -q -p no:xdist $(PYTEST_ARGS)\n"
    )
    (tmp_path / ".ci").symlink_to(REPOSITORY / ".ci")
    text = (REPOSITORY / ".ci" / "run").read_text()
    function = re.search(r"^tests\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    assert function
    told = (
        "python3 .ci/second_try.py .pytest_cache/globus .pytest_cache/unit .pytest_cache/others || status=1\n"
    )
    assert told in text
    lines = (
        f"set -euo pipefail\n{function[0]}status=0\ntests others test_it.py || status=1\n{told}exit $status\n"
    )
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("  test_it.py")] == [
        f"  test_it.py::test_flaky[{n}]" for n in range(flaky)
    ]
