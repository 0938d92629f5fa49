"""What counts as the code of a function, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.study_code.code import CodeWatch, changed_modules, code_of, digest_of
from parsl_rasda.study_code.targets import TargetError

MODULE = """
import math
import physics.solver
from helpers import scale, unused
SIZE = 3
OTHER = 4

def simulate(seed):
    \"\"\"Return a field.\"\"\"
    return scale(_grid(seed)) * SIZE

def _grid(seed):
    return math.pi * physics.solver.step(seed)

def neighbour():
    return OTHER
"""
HELPERS = """
def scale(x):
    return x
def unused(x):
    return x
"""
SOLVER = """
def step(x):
    from .schemes import order
    return order * x
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "physics").mkdir()
    (tmp_path / "physics" / "__init__.py").touch()
    (tmp_path / "physics" / "solver.py").write_text(SOLVER)
    (tmp_path / "physics" / "schemes.py").write_text("order = 4\n")
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "flow.py").write_text(MODULE)
    return tmp_path


def code(folder: Path) -> str:
    return code_of("flow:simulate", [folder])


def edited(folder: Path, file: str, old: str, new: str) -> str:
    path = folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return code(folder)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("flow.py", "return OTHER", "return 5"),
        ("flow.py", "OTHER = 4", "OTHER = 5"),
        ("flow.py", "Return a field.", "Give a field."),
        ("flow.py", "SIZE = 3", "SIZE = 3  # points"),
        ("helpers.py", "def unused(x):", "def unused(y):"),
    ],
)
def test_comments_docstrings_and_neighbours_do_not_count(folder: Path, file: str, old: str, new: str) -> None:
    before = code(folder)
    assert edited(folder, file, old, new) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("flow.py", "return scale(", "return 2 * scale("),
        ("flow.py", "SIZE = 3", "SIZE = 4"),
        ("flow.py", "math.pi *", "math.tau *"),
        ("flow.py", "import math", "import math\nmath.setup()"),
        ("helpers.py", "def scale(x):\n    return x", "def scale(x):\n    return 2 * x"),
        ("physics/solver.py", "order * x", "order + x"),
        ("physics/schemes.py", "order = 4", "order = 2"),
    ],
)
def test_what_it_uses_counts_wherever_it_is(folder: Path, file: str, old: str, new: str) -> None:
    before = code(folder)
    assert edited(folder, file, old, new) != before


@pytest.mark.parametrize(
    ("module", "file", "old", "new"),
    [
        ("from helpers import *\n", "helpers.py", "return x\ndef unused", "return 2 * x\ndef unused"),
        ("if 1 > 0:\n    scale = abs\nelse:\n    scale = int\n", "flow.py", "1 > 0", "1 < 0"),
        ("scale = {}\nfor i in range(3):\n    scale[i] = i\n", "flow.py", "range(3)", "range(4)"),
        ("scale = 1\nwhile scale < 9:\n    scale *= 2\n", "flow.py", "< 9", "< 99"),
        ("from physics.schemes import order as scale\n", "physics/__init__.py", "", "print()"),
    ],
    ids=["star", "if", "for", "while", "package"],
)
def test_what_decides_on_a_name_counts(folder: Path, module: str, file: str, old: str, new: str) -> None:
    (folder / "flow.py").write_text(f"{module}def simulate(seed):\n    return scale\n")
    before = code(folder)
    assert edited(folder, file, old, new) != before


def test_the_docstring_of_a_module_does_not_count(folder: Path) -> None:
    before = code(folder)
    (folder / "flow.py").write_text('"""Flows."""\n' + MODULE)
    assert code(folder) == before


def test_installed_packages_do_not_count(folder: Path) -> None:
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "vendor.py").write_text("x = 1\n")
    (folder / "flow.py").write_text("import vendor\ndef simulate(seed):\n    return vendor.x\n")
    paths = [folder, folder / "site-packages"]
    before = code_of("flow:simulate", paths)
    (folder / "site-packages" / "vendor.py").write_text("x = 2\n")
    assert code_of("flow:simulate", paths) == before


def test_modules_that_import_each_other_are_read_once(folder: Path) -> None:
    (folder / "helpers.py").write_text(
        "from flow import SIZE\ndef scale(x):\n    return SIZE * x\nunused = 0\n"
    )
    assert "SIZE" in code(folder)


def test_a_module_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(TargetError):
        code_of("nowhere:simulate", [folder])


def test_only_what_a_function_does_changes_its_digest(tmp_path) -> None:
    (tmp_path / "train.py").write_text("from helper import value\n\n\ndef train(trial):\n    value()\n")
    helper = tmp_path / "helper.py"
    helper.write_text("def value():\n    return 1\n")
    watch = CodeWatch("train:train", [tmp_path])
    before = watch.now()
    assert watch.now() is before, "nothing is read again"
    helper.write_text("def value():\n    return 1  # and a comment, longer than before\n")
    assert watch.now().digests == before.digests
    helper.write_text("def value():\n    return 2\n")
    after = watch.now()
    assert changed_modules(before.digests, after.digests) == ("helper",)
    assert digest_of(before.digests) != digest_of(after.digests)
    helper.unlink()
    assert changed_modules(after.digests, watch.now().digests) == ("helper",)


@pytest.mark.parametrize("target", [None, "nowhere:train", "json:loads"])
def test_what_is_not_the_studys_own_has_no_digest(tmp_path, target) -> None:
    found = CodeWatch(target, [tmp_path]).now()
    assert (found.digests, digest_of(found.digests)) == ({}, "")
