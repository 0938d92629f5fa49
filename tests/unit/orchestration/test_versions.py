"""A journal that another version wrote: what that decided stands, and the search goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from parsl_rasda.errors import JournalError, OtherDecisionError
from parsl_rasda.orchestration.events import EndJob, JobStarted, StudyInterrupted, VersionChanged
from parsl_rasda.orchestration.journal import VERSION, Journal, Record, read
from parsl_rasda.orchestration.replay import ReplayedSearch, replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.study import TuneSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import JobId, StudyState, TrialId
from tests.unit.orchestration.small_study import SITE, curve, driver, tune

OLD, NEW = tune(), tune(scheduler={"variant": "promotion", "growth": "strict"})


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the first records of a search under version 0.0.9."""
    folder = tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as earlier:
        earlier.setattr("parsl_rasda.orchestration.journal.VERSION", "0.0.9")
        driver(folder, FakeBackend(curve), OLD).run(6, {SITE: 1})
        rewrite(folder, list(read(folder / "journal.jsonl"))[:-12])
    return folder


def rewrite(folder: Path, records: list[Record]) -> None:
    path = folder / "journal.jsonl"
    header = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(header)
    with Journal(path, "study") as journal:
        journal.append(records)


def replayed(folder: Path, spec: TuneSpec) -> ReplayedSearch:
    return replay_search(RunDirectory(folder), "study", spec, seed=7)


def resumed(folder: Path, spec: TuneSpec, **values: Any) -> ReplayedSearch:
    found = replayed(folder, spec)
    run = driver(folder, FakeBackend(curve), spec, machine=found.machine, searcher=found.searcher, **values)
    run.run(6, {SITE: 1}, [] if found.version == VERSION else [VersionChanged(1e6, VERSION)])
    return found


def test_a_version_that_decides_the_same_says_nothing(killed: Path) -> None:
    found = replayed(killed, OLD)
    assert (found.version, found.followed, found.difference) == ("0.0.9", 0, "")


def test_what_another_version_decided_stands_and_is_told_in_a_sentence(killed: Path) -> None:
    old, new = replayed(killed, OLD), replayed(killed, NEW)
    assert new.followed == 1
    assert new.difference.startswith(f"{killed / 'journal.jsonl'}:")
    assert f"parsl_rasda 0.0.9 wrote this, {VERSION} would decide otherwise from here" in new.difference
    assert "after EpochReported" in new.difference
    assert "\n" not in new.difference
    for name in old.machine.trials:
        one, other = old.machine.trials[name], new.machine.trials[name]
        assert (one.epoch, one.checkpoint, one.history, one.attempt) == (
            other.epoch,
            other.checkpoint,
            other.history,
            other.attempt,
        )
        assert one.state == other.state
    assert list(new.records) == list(old.records)


def test_the_search_goes_on_to_its_end_and_is_replayed_strictly_from_the_change_on(killed: Path) -> None:
    before = len(replayed(killed, NEW).records)
    lived = resumed(killed, NEW)
    assert lived.machine.state is StudyState.DONE
    again = replayed(killed, NEW)
    assert (again.version, again.followed) == (VERSION, 1)
    assert (
        summarise("s", again.machine, again.usage)["trial_list"]
        == (summarise("s", lived.machine, lived.usage)["trial_list"])
    )
    records = list(read(killed / "journal.jsonl"))
    assert records[before] == Record(VersionChanged(1e6, VERSION), ())
    late = next(i for i, r in enumerate(records) if i > before + 2 and isinstance(r.event, JobStarted))
    records[late] = Record(records[late].event, (EndJob(JobId(TrialId("0000"), 1), "stopped"),))
    rewrite(killed, records)
    with pytest.raises(OtherDecisionError, match=rf"journal.jsonl:{late + 2}: this version .* otherwise"):
        replayed(killed, NEW)


def test_a_third_version_follows_both(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed(killed, NEW)
    third = tune(scheduler={"variant": "synchronous", "growth": "none"})
    for name in ("replay", "journal"):
        monkeypatch.setattr(f"parsl_rasda.orchestration.{name}.VERSION", "9.9.9")
    found = replayed(killed, third)
    assert found.followed == 2
    assert found.machine.state is StudyState.DONE


def test_the_same_version_that_decides_otherwise_is_refused(tmp_path: Path) -> None:
    driver(tmp_path, FakeBackend(curve), OLD).run(6, {SITE: 1})
    with pytest.raises(OtherDecisionError, match=r"decides otherwise.*\(after EpochReported") as error:
        replayed(tmp_path, NEW)
    assert error.value.exit_code == 2


def test_what_nobody_can_follow_is_an_error_with_its_line(killed: Path) -> None:
    records = [*read(killed / "journal.jsonl")]
    ghost = EndJob(JobId(TrialId("0077"), 1), "stopped")
    rewrite(killed, [*records[:9], Record(StudyInterrupted(1.0), (ghost,)), *records[9:]])
    with pytest.raises(JournalError, match=r"journal.jsonl:11: .*cannot go on .*\(job 0077.1 does not run\)"):
        replayed(killed, OLD)


def test_a_record_that_contradicts_those_before_it_is_an_error_with_its_line(tmp_path: Path) -> None:
    driver(tmp_path, FakeBackend(curve), OLD).run(6, {SITE: 1})
    records = [*read(tmp_path / "journal.jsonl")]
    twice = replace(records[1].event, nodes=records[1].event.nodes * 2)
    rewrite(tmp_path, [records[0], replace(records[1], event=twice)])
    with pytest.raises(JournalError, match=r"journal.jsonl:3: cannot follow what is before it \("):
        replayed(tmp_path, OLD)
