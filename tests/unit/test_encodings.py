"""Text files are UTF-8 whatever the locale: every call that reads or writes text says so."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FILES = [f for folder in ("parsl_rasda", "workflows") for f in sorted((REPOSITORY / folder).rglob("*.py"))]

_MODES = {"r", "w", "a", "x", "r+", "w+", "a+"}


def _silent(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of calls that leave the encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg for keyword in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if "encoding" in named or "utf-8" in words:
            continue
        is_process = "text" in named and name in {"run", "Popen", "check_output"}
        is_open = name in {"open", "fdopen"} and words[-1:] and words[-1] in _MODES
        if name in {"read_text", "write_text"} or is_process or is_open:
            yield node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(REPOSITORY)))
def test_every_text_file_has_an_encoding(file: Path) -> None:
    assert list(_silent(ast.parse(file.read_text(encoding="utf-8")))) == []


def test_a_study_in_any_language_is_validated_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: größe\ntune:\n  metric: loss\n  num_samples: 1\n  scheduler: {max_t: 1}\n"
        "  search_space: {act: {choice: [λ, 'ж']}}\n  training: {command: [λ]}\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from parsl_rasda.cli.main import main; main()",
            "validate",
            str(tmp_path / "s.yaml"),
        ],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
