"""Text from users is cleaned and cut once, and harmless wherever it is shown."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from parsl_rasda.orchestration.events import JobEnded, PilotEnded, PilotStarted, SiteDegraded, cleaned_event
from parsl_rasda.plain_text import LONGEST, cleaned, printable, words_of
from parsl_rasda.protocol import JobResult
from parsl_rasda.reporting.files import COLUMNS, results_csv
from parsl_rasda.reporting.graph import graphml
from parsl_rasda.reporting.tables import as_text
from parsl_rasda.reporting.templates import render
from parsl_rasda.types import JobId, Outcome, PilotId, SiteName, TrialId

anything = st.text(st.characters())  # surrogates, too
UNFIT = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m \0 \x08 \x7f \ud800 \u202egpj \ufffe"


@given(text=anything)
def test_what_is_printable_is_utf8_and_xml_and_stays_as_it_is(text: str) -> None:
    found = printable(text)
    found.encode()
    ET.fromstring(f"<a>{found.replace('&', '').replace('<', '')}</a>")
    assert printable(found) == found
    assert "\x1b" not in found


@given(text=anything | anything.map(lambda t: t * 1000))
def test_what_is_cleaned_is_short_and_cleaning_it_again_changes_nothing(text: str) -> None:
    found = cleaned(text)
    assert len(found) <= LONGEST
    assert cleaned(found) == found
    assert printable(found) == found


def test_colours_and_titles_are_left_out_and_words_stay() -> None:
    assert (
        cleaned("\x1b[31mred\x1b[0m \x1b]0;title\x07[/scratch] [bold] größe\r\nλ")
        == "red [/scratch] [bold] größe\nλ"
    )


def test_both_ends_of_a_long_text_are_kept() -> None:
    found = cleaned("begin" + "z" * 20_000_000 + "end")
    assert found.startswith("begin")
    assert found.endswith("end")
    assert len(found) <= LONGEST


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class WrongError(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - that is the mistake


@pytest.mark.parametrize(
    "error",
    [SilentError(), WrongError(), ValueError("\ud800"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x")],
)
def test_every_exception_has_words(error: Exception) -> None:
    words = words_of(error)
    assert words.startswith(type(error).__name__)
    words.encode()


@pytest.mark.parametrize(
    "event",
    [
        lambda text: JobEnded(0.0, JobId(TrialId("a"), 1), Outcome.FAILED, text),
        lambda text: PilotEnded(0.0, PilotId("p"), SiteName("s"), text),
        lambda text: SiteDegraded(0.0, SiteName("s"), text),
        lambda text: PilotStarted(0.0, PilotId("p"), SiteName("s"), (), warning=text),
    ],
)
def test_what_enters_the_journal_is_cleaned(event: Callable[[str], object]) -> None:
    text = UNFIT + "z" * 100_000
    assert cleaned_event(event(text)) == event(cleaned(text))  # type: ignore[arg-type]


def test_a_result_from_elsewhere_is_cleaned_when_it_is_read() -> None:
    own = JobResult(TrialId("a"), 1, Outcome.FAILED, 0, cause=UNFIT * 1000, traceback="z" * 10**6)
    read = JobResult.from_json(json.loads(json.dumps(own.to_json())))
    assert read.cause == cleaned(own.cause)
    assert len(read.traceback) <= 20_000


@pytest.mark.parametrize(
    "text", [UNFIT, "[/scratch/run] [bold]notes :smile:", "]]> <b> & \" '", "=1+1", 'a,"b"\n\r;c']
)
def test_no_view_is_broken_or_led_by_what_a_user_wrote(text: str) -> None:
    table = Table()
    table.add_column(text)
    table.add_row(text)
    shown = as_text(table, 400) + as_text(Text(text), 400)
    assert not {"\x1b", "\x9b", "\x07", "\0"} & set(shown)
    if text.startswith("["):
        assert shown.count("[/scratch/run] [bold]notes :smile:") == 3
    graph: nx.DiGraph[str] = nx.DiGraph(name=text)
    graph.add_node("a", reason=text, label=text, kind="stage", state="done")
    ET.fromstring(graphml(graph))
    trial = {
        "trial": "a",
        "state": "failed",
        "epoch": 1,
        "metric": None,
        "replicas": 1,
        "attempts": 1,
        "reason": text,
    }
    rows = list(csv.reader(io.StringIO(results_csv({"trial_list": [{**trial, "config": {"x": text}}]}))))
    assert [len(row) for row in rows] == [len(COLUMNS) + 1] * 2


def test_an_svg_with_such_text_is_xml() -> None:
    box = {"x": 0, "y": 0, "width": 1, "height": 1, "colour": "#fff", "facts": UNFIT, "lines": [(1, UNFIT)]}
    ET.fromstring(
        render("graph.svg", width=1, height=1, curves=[], boxes=[box], heads={UNFIT: (1, 1)}, legend=[])
    )
