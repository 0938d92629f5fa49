"""The docs site: built without a warning, complete, and read without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from parsl_rasda.exits import EndedBy
from parsl_rasda.types import StudyState
from tests.shipped.causes import causes
from tests.shipped.documents import DOCS, REPOSITORY

pytestmark = pytest.mark.slow
SOURCES = {"link": "href", "script": "src", "img": "src", "iframe": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not included in the" not in done.stderr, "every page is in the navigation"
    return folder


class Loaded(HTMLParser):
    """What a browser loads for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in SOURCES and given.get("rel") not in {"canonical", "prev", "next"}:
            self.found.append(given.get(SOURCES[tag]) or "")


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        parser = Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        outside = [each for each in parser.found if re.match(r"(https?:)?//", each)]
        assert outside == [], page.name
        for each in parser.found:
            if each and not each.startswith(("data:", "#")):
                assert (page.parent / each.partition("?")[0]).exists() or page.name == "404.html", each
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), (
            style.name
        )


def test_the_site_has_every_page(site: Path) -> None:
    expected = {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.md")}
    expected |= {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.ipynb")}
    assert {page for page in expected if not (site / page).exists()} == set()
    assert "defiltered by trial" not in (site / "index.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in (site / "notebooks/cfd.html").read_text(encoding="utf-8")


def test_the_navigation_names_every_page_once() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r": ([\w/]+)\.md$", text, re.MULTILINE)
    there = [
        p.relative_to(DOCS).with_suffix("").as_posix() for s in ("*.md", "*.ipynb") for p in DOCS.rglob(s)
    ]
    assert sorted(named) == sorted(there)
    assert yaml.safe_load(text)["strict"] is True


# ---------------------------------------------------------------------------- causes

CAUSES = (DOCS / "causes.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    section = CAUSES.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_every_cause_that_the_code_can_give_has_its_line() -> None:
    page = CAUSES.replace("`", "")
    found = causes()
    assert len(found) > 50
    assert {text: where for text, where in found.items() if text.replace("`", "") not in page} == {}


def test_every_kind_of_end_and_every_state_of_a_study_has_its_line() -> None:
    assert first_cells("How an attempt ended") == [each.value for each in EndedBy]
    states = first_cells("The study")[: len(StudyState)]
    assert sorted(states) == sorted(each.value for each in StudyState)
