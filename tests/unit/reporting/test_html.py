"""The report as one page: true in any state, whole, harmless, and drawn by a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parsl_rasda.orchestration.events import JobEnded, SiteDegraded
from parsl_rasda.orchestration.invariants import VARIABLE
from parsl_rasda.orchestration.journal import Journal, Record
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import StageRecord, write_record
from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.html import page
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.templates import render
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import StudySpec
from parsl_rasda.types import JobId, Outcome, SiteName, StageState

HOSTILE = "</pre></script><script>document.title='gone'</script>\"'><img src=x onerror=alert(1)>&amp;"
VOID = {"meta"}
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--hide-scrollbars"),
)


class Reader(HTMLParser):
    """Reads a page, and finds out whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.figures: dict[str, str] = {}
        self.text: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.policy = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [str(v) for k, v in attrs if k in {"href", "src", "srcset", "action", "data"}]
        assert not any(name.startswith("on") for name in found), "no element has a script of its own"
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])
        if tag == "data":
            self.figures[str(found["data-key"])] = str(found["value"])
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "td" in self._open:
            self.rows[-1][-1] += data
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read(directory: Path, now: float | None = None) -> Reader:
    return Reader(page(read_run(directory), now=now))


def looked_up(document: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        document = document[part]
    return document


def test_every_metric_has_its_curves_behind_a_switch(rehearsals: Any, tmp_path: Path) -> None:
    others = {f"m{i}": float for i in range(20)} | {"<b>": lambda epoch: 1 / epoch}
    rehearsals.into(tmp_path, rehearsals.study_of(), also={"train_loss": lambda epoch: 2.0**-epoch})
    found = read(tmp_path)
    assert found.texts["option"] == ["val_loss", "train_loss"] * 3, "curves, best so far, hyperparameters"
    rehearsals.into(tmp_path / "many", rehearsals.study_of(), also=others)
    assert read(tmp_path / "many").texts["option"] == ["val_loss", *(f"m{i}" for i in range(11))] * 3


def test_its_figures_are_those_of_status(finished: Path) -> None:
    found, document = read(finished), read_run(finished).document()
    assert set(found.figures) == {
        *("best.metric", "trials.total", "makespan_s", "gpu_hours", "gpu_busy_fraction"),
        *("epochs", "restarts.count", "faults.count", "asha.makespan_s"),
    }
    assert found.figures == {key: str(looked_up(document, key)) for key in found.figures}
    assert "rehearsed: done" in found.texts["title"]
    assert f"checkpoint: {document['best']['checkpoint']}" in found.words.replace(" copy ", " ")


def test_every_trial_is_there_with_the_reason_of_its_end(finished: Path) -> None:
    found = read(finished)
    for trial in read_run(finished).document()["trial_list"]:
        assert trial["trial"] in found.texts["td"]
        assert trial["reason"] in found.texts["td"]
    assert "trial 0005: val_loss is nan after epoch 1" in found.words


def test_the_ladder_accounts_for_everyone(finished: Path) -> None:
    summary = read_run(finished).document()
    text = page(read_run(finished))
    ladder = text[text.index("<h3>Rungs</h3>") : text.index("<h3>Hyperparameters</h3>")]
    rows = Reader(ladder).rows[1:]
    came, went_on, completed = ([int(row[i]) for row in rows] for i in (3, 5, 9))
    assert came == [r["reached"] for r in summary["rungs"]]
    assert came[1:] == went_on[:-1], "whoever went on came to the next rung"
    assert sum(completed) == summary["trials"]["completed"]


def test_it_needs_nothing_else(finished: Path) -> None:
    found = read(finished)
    assert all(link.startswith("#") for link in found.links)
    assert found.policy.startswith("default-src 'none'; ")
    assert "://" not in page(read_run(finished)).replace("http://www.w3.org/2000/svg", "")


def not_begun(rehearsals: Any, directory: Path) -> None:
    rehearsals.into(directory, rehearsals.study_of())
    (directory / "journal.jsonl").unlink()


def waiting_for_its_pilot(rehearsals: Any, directory: Path) -> None:
    rehearsals.into(directory, rehearsals.study_of(), torn_after=1.0)


def torn(rehearsals: Any, directory: Path) -> None:
    rehearsals.into(directory, rehearsals.study_of(), torn_after=60.0)


def without_a_success(rehearsals: Any, directory: Path) -> None:
    never = rehearsals.costs_of(metric=lambda trial, epoch: float("nan"))
    rehearsals.into(directory, rehearsals.study_of(), costs=never)


def without_a_site(rehearsals: Any, directory: Path) -> None:
    rehearsals.into(directory, rehearsals.study_of(), torn_after=0.0)
    write_record(directory / "stages" / "tune", StageRecord(StageState.NO_SITE, at=1.0, cause="no account"))


@pytest.mark.parametrize(
    ("make", "title", "words"),
    [
        (not_begun, "rehearsed: has not begun", "has not begun"),
        (waiting_for_its_pilot, "rehearsed: interrupted", "parsl-rasda resume"),
        (torn, "rehearsed: interrupted", "parsl-rasda resume"),
        (without_a_success, "rehearsed: failed", "no trial succeeded"),
        (without_a_site, "rehearsed: no site", "no account"),
    ],
)
def test_it_tells_the_truth_about_a_run_in_any_state(
    make: Any, title: str, words: str, rehearsals: Any, tmp_path: Path
) -> None:
    make(rehearsals, tmp_path)
    found = read(tmp_path)
    assert found.texts["title"][0] == title
    assert words in found.words
    document = read_run(tmp_path).document()
    assert found.figures == {key: str(looked_up(document, key)) for key in found.figures}


def test_while_somebody_runs_it_it_is_as_of_now(rehearsals: Any, tmp_path: Path) -> None:
    torn(rehearsals, tmp_path)
    with RunDirectory(tmp_path).controlled():
        found = read(tmp_path, now=100.0)
    assert found.texts["title"][0] == "rehearsed: running"
    assert found.figures["makespan_s"] == "100.0"
    assert "being run by process" in found.words


def test_a_failed_stage_is_there_with_its_cause(pipeline: Path) -> None:
    record = StageRecord(StageState.FAILED, cause="ValueError: no field", at=2.0)
    write_record(pipeline / "stages" / "evaluate", record)
    found = read(pipeline)
    assert found.texts["title"][0] == "rehearsed: failed"
    assert "ValueError: no field" in found.texts["td"]
    assert "Search tune" in found.texts["h2"]


def test_a_run_without_a_search_is_its_stages(pipeline: Path) -> None:
    study = (
        "name: plain\nstages: {simulate: {python: workflows.emulated.train:train, for_each: {seed: [0, 1]}}}"
    )
    (pipeline / "study.yaml").write_text(study)
    found = read(pipeline)
    assert found.texts["title"][0] == "plain: done"
    assert found.rows[1][:4] == ["simulate", "done", "2", "3.0 s"]
    assert not found.figures


def test_trials_that_pause_are_on_the_ladder(rehearsals: Any, tmp_path: Path) -> None:
    study = rehearsals.study_of(scheduler={"variant": "promotion"}, num_samples=12)
    rehearsals.into(tmp_path, study, torn_after=40.0)
    text = page(read_run(tmp_path))
    rows = Reader(text[text.index("<h3>Rungs</h3>") : text.index("<h3>Hyperparameters</h3>")]).rows[1:]
    counts = [[int(cell) for cell in row[3:4] + row[5:10]] for row in rows]
    assert counts[0][2] > 0, "some are paused"
    assert all(came == sum(fates) for came, *fates in counts)


def test_several_searches_have_a_section_each(rehearsals: Any, tmp_path: Path) -> None:
    tune = rehearsals.study_of().tune_stages["tune"].model_dump(mode="json", by_alias=True)
    study = StudySpec.model_validate({"name": "two", "stages": {"coarse": tune, "fine": tune}})
    rehearsals.into(tmp_path, study, stage="coarse")
    found = read(tmp_path)
    assert found.tags.count("section") == 2
    assert [h for h in found.texts["h2"] if h.startswith("Search")] == ["Search coarse", "Search fine"]
    assert found.texts["h3"].count("Rungs") == 1, "the other one has not begun"
    assert found.links[:2] == ["#search-0", "#search-1"]


@pytest.fixture
def hostile(rehearsals: Any, tmp_path: Path) -> Path:
    """A run with a name, settings, causes and reasons that are markup, and a terminal's colours."""
    directory = tmp_path / "hostile"
    choices = [HOSTILE, "\x1b[31mred\x1b[0m\x00"]
    study = rehearsals.study_of(search_space={"lr": {"float": [0.001, 0.1]}, "how": {"choice": choices}})
    rehearsals.into(
        directory,
        study,
        config_of=lambda trial: {"lr": 0.001 * (trial + 1), "how": choices[trial % 2]},
        torn_after=30.0,
    )
    machine = read_run(directory).searches["tune"].machine
    with Journal(directory / "journal.jsonl", study.name) as journal:
        event = JobEnded(31.0, JobId.parse("0000.1"), Outcome.FAILED, HOSTILE)
        journal.append([Record(event, machine.handle(event))])
    write_record(directory / "stages" / "tune", StageRecord(StageState.FAILED, at=40.0, cause=HOSTILE))
    return directory


def test_what_comes_from_the_user_stays_text(hostile: Path) -> None:
    run = read_run(hostile)
    found = Reader(page(replace(run, study=run.study.model_copy(update={"name": HOSTILE}))))
    script = (files("parsl_rasda.reporting") / "page" / "report.js").read_text()
    assert found.texts["script"] == [script]
    assert "img" not in found.tags
    assert found.texts["h1"] == [HOSTILE], "the name of the study"
    assert found.texts["title"][0] == f"{HOSTILE}: failed"
    trials = {row[0]: row for row in found.rows if row}
    assert trials["0000"][-1] == HOSTILE, "the reason of a trial"
    assert trials["0002"][7] == HOSTILE, "a setting"
    assert trials["0001"][7] == r"\x1b[31mred\x1b[0m\x00", "what a terminal would obey is written out"
    assert any(HOSTILE in text for text in found.texts["p"]), "the cause"


@given(text=st.text(min_size=1), attribute=st.text())
@example(text=HOSTILE, attribute=HOSTILE)
def test_whatever_is_put_into_a_template_is_text_again_when_it_is_read(text: str, attribute: str) -> None:
    box = {"x": 0, "y": 0, "width": 1, "height": 1, "colour": attribute, "facts": text, "lines": [(0, text)]}
    values = {"width": 1, "height": 1, "curves": [], "heads": {}, "legend": []}
    found = Reader(render("graph.svg", boxes=[box], **values))
    assert found.tags == ["svg", "defs", "marker", "path", "g", "title", "rect", "text"]
    if "\r" not in text:  # which HTML reads as another line end
        assert "".join(found.texts["title"]) == "".join(found.texts["text"]) == printable(text)


@pytest.mark.slow
def test_a_thousand_trials_are_one_or_two_megabytes(
    rehearsals: Any, tmp_path: Path, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "0")  # looking at every trial after every event is nine tenths of the work
    study = rehearsals.study_of(num_samples=1000, scheduler={"max_t": 81, "max_workers": 8})
    rehearsals.into(tmp_path, study, site=VirtualSite(nodes=16, gpus_per_node=4))
    run = read_run(tmp_path)
    began = time.perf_counter()
    text = page(run)
    record_property("seconds", time.perf_counter() - began)  # 1.0 s on a core of the machine at hand
    assert len(text.encode()) < 2_000_000
    assert Reader(text).tags.count("tr") > 1000


# --------------------------------------------------------------------------------- in a real browser

PROBE = """
<script>
const heading = document.querySelectorAll(".trials th")[%(column)d];
heading.click();
const rows = Array.from(document.querySelectorAll(".trials tbody tr"), (row) => row.dataset.trial);
const curves = Array.from(document.querySelectorAll("svg .curve.best"));
const svg = curves.find((one) => one.getClientRects().length);
svg.scrollIntoView({block: "center"});
const at = svg.getPointAtLength(0).matrixTransform(svg.getScreenCTM());
svg.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: at.x, clientY: at.y}));
const seen = {
  rows,
  tooltip: document.getElementById("tooltip").textContent,
  hot: document.querySelectorAll(".hot").length,
  fits: document.documentElement.scrollWidth <= innerWidth,
};
document.body.replaceChildren(JSON.stringify(seen));
</script>
"""


CUT = """
<script>
const scrolls = ".graph, .graph *, svg *, .trials";  // the graph is moved about, rows are scrolled to
const isCut = (one) => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline";
const seen = {
  width: innerWidth,
  fits: document.documentElement.scrollWidth <= innerWidth,
  cut: Array.from(document.querySelectorAll("body *:not(script)"))
    .filter((one) => !one.matches(scrolls) && one.clientWidth && isCut(one))
    .map((one) => `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`),
  drawn: Array.from(document.querySelectorAll("svg[role=img]")).filter((one) => one.clientWidth).length,
  smallest: Math.min(...Array.from(document.querySelectorAll("svg[role=img] text"), (one) =>
    one.getBoundingClientRect().height).filter((height) => height)),
};
document.body.replaceChildren(JSON.stringify(seen));
</script>
"""
SECTIONS = (
    *("Best configuration", "Faults and their causes", "Faults over time", "Learning curves", "Best so far"),
    *("Who held which GPUs when", "Rungs", "Importance of the hyperparameters"),
    *("Hyperparameters and result of each trial", "Hyperparameters", "All 16 trials", "Methods, for a paper"),
    *("Decision graph", "What was run"),
)


@pytest.fixture
def browser(need: Any, tmp_path: Path) -> Iterator[Any]:
    """Open a page in a browser of its own; return what it prints, once it has complained of nothing."""
    need("chromium")
    profile = tmp_path / "profile"

    def opened(file: Path, *options: str) -> str:
        argv = ("chromium", *CHROMIUM, f"--user-data-dir={profile}", *options, file.as_uri())
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    yield opened
    shutil.rmtree(profile, ignore_errors=True)


def test_a_browser_draws_it_and_has_nothing_to_complain_of(finished: Path, browser: Any) -> None:
    from PIL import Image

    file, picture = finished / "report.html", finished / "picture.png"
    file.write_text(page(read_run(finished)))
    browser(file, "--window-size=1200,1600", f"--screenshot={picture}")
    with Image.open(picture) as drawn:
        assert drawn.size == (1200, 1600)
        colours = drawn.convert("RGB").getcolors(maxcolors=1 << 20)
    best = sum(count for count, colour in colours if colour == (0xC2, 0x18, 0x6B))
    assert best > 500, "curve, legend and bars of the best trial"


def test_the_table_sorts_and_a_curve_tells_its_trial(finished: Path, browser: Any) -> None:
    """Only our own script may run on the page: the probe's page has no such rule."""
    run = read_run(finished)
    text = page(run)
    policy = text[text.index("<meta http-equiv") : text.index("<meta name")]
    file = finished / "probed.html"
    file.write_text(text.replace(policy, "").replace("</body>", PROBE % {"column": 0} + "</body>"))
    shown = browser(file, "--window-size=420,900", "--dump-dom")
    seen = json.loads(Reader(shown).texts["body"][0])
    best = run.document()["best"]
    assert seen["rows"] == [f"{i:04d}" for i in range(8)]
    assert f"trial: {best['trial']}" in seen["tooltip"]
    assert "lr: " in seen["tooltip"]
    assert seen["hot"] >= 4, "the same trial in every picture, and its row"
    assert seen["fits"], "a narrow window scrolls pictures and tables, not the page"


SWITCHED = """<script>
const one = document.querySelectorAll("select.switch")[2];
one.value = "train_loss";
one.dispatchEvent(new Event("change", { bubbles: true }));
const shown = Array.from(document.querySelectorAll(".switched:not([hidden])"), (d) => d.dataset.metric);
const chosen = Array.from(document.querySelectorAll("select.switch"), (s) => s.value);
document.body.textContent = JSON.stringify([shown, chosen]);
</script>"""


def test_one_switch_turns_all_pictures_to_its_metric(rehearsals: Any, tmp_path: Path, browser: Any) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), also={"train_loss": lambda epoch: 2.0**-epoch})
    text = page(read_run(tmp_path))
    policy = text[text.index("<meta http-equiv") : text.index("<meta name")]
    file = tmp_path / "switched.html"
    file.write_text(text.replace(policy, "").replace("</body>", f"{SWITCHED}</body>"))
    shown = browser(file, "--dump-dom")
    assert json.loads(Reader(shown).texts["body"][0]) == [["train_loss"] * 3] * 2


def test_a_hostile_page_is_harmless(hostile: Path, browser: Any) -> None:
    file = hostile / "report.html"
    file.write_text(page(read_run(hostile)))
    shown = Reader(browser(file, "--dump-dom"))
    assert shown.texts["title"][0] == "rehearsed: failed"
    assert "img" not in shown.tags


@pytest.mark.parametrize("width", [1400, 420])
def test_every_section_is_there_and_nothing_is_cut(
    width: int, rehearsals: Any, tmp_path: Path, browser: Any
) -> None:
    space = {"lr": {"float": [0.001, 0.1], "log": True}, "a_name_of_some_length": {"float": [0, 1]}}
    space |= {"optimizer": {"choice": ["sgd", "adamw"]}}
    study = rehearsals.study_of(num_samples=16, search_space=space)

    def config_of(trial: int) -> dict[str, Any]:
        rest = {"a_name_of_some_length": trial * 5 % 16 / 15, "optimizer": ["sgd", "adamw"][trial % 2]}
        return {"lr": 0.001 * (trial + 1), **rest}

    rehearsals.into(tmp_path / "run", study, config_of=config_of)
    with Journal(tmp_path / "run" / "journal.jsonl", study.name) as journal:
        journal.append([Record(SiteDegraded(1e3, SiteName("virtual"), "its file system is slow"), ())])
    text = page(read_run(tmp_path / "run"))
    headings = [" ".join(h.split()) for h in re.findall(r"<h[23]>([^<]*)</h[23]>", text)]
    missing = [s for s in SECTIONS if not any(h.startswith(s) for h in headings)]
    assert not missing, headings
    policy = text[text.index("<meta http-equiv") : text.index("<meta name")]
    file = tmp_path / "probed.html"
    file.write_text(text.replace(policy, "").replace("</body>", CUT + "</body>"))
    seen = json.loads(Reader(browser(file, f"--window-size={width},900", "--dump-dom")).texts["body"][0])
    assert seen["fits"]
    assert seen["cut"] == []
    assert seen["drawn"] >= 9
    assert seen["smallest"] > 8, "every word of a chart can be read"


def test_the_page_of_a_failed_run_says_what_to_do(rehearsals: Any, tmp_path: Path) -> None:
    costs = rehearsals.costs_of(metric=lambda trial, epoch: float("nan"))
    rehearsals.into(tmp_path / "run", rehearsals.study_of(), costs=costs)
    text = page(read_run(tmp_path / "run"))
    todo = text[text.index('class="todo"') :]
    assert "What to do" in todo[:200]
    assert "resume with --retry-failed" in todo[:2000]
