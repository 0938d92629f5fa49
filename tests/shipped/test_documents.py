"""Every link, path and module that the documents name exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import parsl_rasda
from parsl_rasda.cli.main import app

REPOSITORY = Path(__file__).parents[2]
TOP = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS = [*TOP, *sorted((REPOSITORY / "docs").glob("*.md"))]
TREES = ("parsl_rasda", "tests", "benchmarks", "docs", "workflows", "site_configs")
MOST_LINES = 150
each = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def words_of(document: Path) -> list[str]:
    """Return what stands between single backquotes."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@each
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    for link in links:
        if not re.match(r"\w+://", link):
            file = document.parent / link.partition("#")[0]
            assert file.exists() or file.with_suffix(".ipynb").exists(), link


@each
def test_every_path_and_every_module_exists(document: Path) -> None:
    for word in words_of(document):
        if re.fullmatch(rf"({'|'.join(TREES)})/[\w./-]*", word):
            assert (REPOSITORY / word).exists(), word
        elif re.fullmatch(r"parsl_rasda(\.[a-z_0-9]+)+", word) and not is_group(word):
            assert is_importable(word), word


def is_group(word: str) -> bool:
    """Whether a name is that of a group of entry points."""
    return any(f'"{word}"' in path.read_text() for path in (REPOSITORY / "parsl_rasda").rglob("*.py"))


def is_importable(name: str) -> bool:
    """Whether this is a module, or a name in one."""
    for module, _, rest in ((name, "", ""), name.rpartition(".")):
        if importlib.util.find_spec(module) is not None:
            return not rest or hasattr(importlib.import_module(module), rest)
    return False


@each
def test_it_can_be_read_in_one_go_and_stands_for_itself(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert "../shared" not in text
    assert re.search(r"\bissues? #?\d", text) is None
    if document.name not in {"README.md", "CHANGELOG.md"}:  # one has its own limit, the other grows
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert len(prose.splitlines()) < MOST_LINES
    if document.name != "CHANGELOG.md":
        assert len(text.splitlines()) <= (150 if document.name == "README.md" else 300)


def test_the_readme_names_every_command_and_the_results_every_exit_code() -> None:
    text = (REPOSITORY / "README.md").read_text()
    commands = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    assert {c for c in commands if not re.search(rf"parsl-rasda {c}\b|`{c}\b", text)} == set()
    codes = re.findall(r"^\| (\d+) ", (REPOSITORY / "docs/reference/exit_codes.md").read_text(), re.MULTILINE)
    said = (REPOSITORY / "docs/results.md").read_text().partition("Exit codes are")[2].partition("`run`")[0]
    assert {*codes} == {*re.findall(r"\d+", said)}


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == parsl_rasda.__version__
    assert citation["references"][0]["doi"] == "10.1016/j.future.2025.108042"
    assert citation["references"][0]["doi"] in (REPOSITORY / "README.md").read_text()
