"""The pages of docs/reference say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MOST_LINES = 300


def pages() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[Path, str] = module.pages()
    return found


PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_is_what_the_code_makes_of_it(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page], "run `make reference`"
    assert page.suffix == ".json" or len(PAGES[page].splitlines()) < MOST_LINES


def test_no_page_is_left_of_something_that_is_gone() -> None:
    assert {*(REPOSITORY / "docs" / "reference").iterdir()} == {
        page for page in PAGES if page.suffix == ".md"
    }
