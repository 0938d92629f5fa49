"""A study's modules and Python's do not take each other's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from parsl_rasda.user_modules import add_user_folders, import_user_module
add_user_folders([sys.argv[1]])
module = import_user_module(sys.argv[2])
import getpass
print(json.dumps({"argv": sys.argv, "value": module.value, "getpass": hasattr(getpass, "getuser"),
                  "path": sys.path}))
"""


@pytest.fixture
def study(tmp_path) -> Path:
    (tmp_path / "getpass.py").write_text("KEY = 'mine'\n")
    (tmp_path / "types.py").write_text("raise SystemExit('a script')\n")
    (tmp_path / "train.py").write_text("import getpass, helper\nvalue = [getpass.KEY, helper.value]\n")
    (tmp_path / "helper.py").write_text("from getpass import KEY\nvalue = KEY * 2\n")
    (tmp_path / "profile.py").write_text("import train\nvalue = 'a namesake'\n")
    return tmp_path


def imported(folder: Path, module: str, cwd: Path, **environ: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(folder), module],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environ},
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("environ", [{}, {"PYTHONSAFEPATH": "1"}])
def test_a_studys_files_have_their_own_modules_and_all_others_pythons(study, environ) -> None:
    found = imported(study, "train", study, **environ)
    assert found["value"] == ["mine", "minemine"]
    assert found["getpass"], "the standard library's"
    assert found["argv"] == [str(study / "train.py")], "as of a program without arguments"


def test_a_studys_function_may_be_in_a_namesake(study, tmp_path) -> None:
    found = imported(study, "profile", tmp_path)
    assert found["value"] == "a namesake"
    assert found["argv"] == [str(study / "profile.py")]


def test_a_studys_modules_come_before_what_is_installed_and_after_the_library(study) -> None:
    path = imported(study, "helper", study)["path"]
    assert isinstance(path, list)
    at = path.index(os.path.realpath(study))
    assert path[at - 1].endswith("lib-dynload")
    assert all(at < i for i, each in enumerate(path) if each.endswith("site-packages"))
