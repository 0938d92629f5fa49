from __future__ import annotations

import json
import math
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.errors import JournalError
from parsl_rasda.orchestration.events import (
    CodeSeen,
    ContinueJob,
    EndJob,
    EpochReported,
    Event,
    FinishStudy,
    Instruction,
    JobEnded,
    JobStarted,
    ObserveTrial,
    PilotEnded,
    PilotLost,
    PilotQueued,
    PilotStarted,
    ProposeTrial,
    ReleasePilot,
    RequestPilot,
    SearchExhausted,
    SetAside,
    SiteDegraded,
    StartJob,
    StudyInterrupted,
    StudyStarted,
    TimerFired,
    TrialFinished,
    TrialProposed,
    UserTold,
    VersionChanged,
)
from parsl_rasda.orchestration.journal import VERSION, Journal, Record, decode, encode, read, version_of
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.types import (
    Blame,
    GradientNoise,
    JobId,
    NodeName,
    NodeSlots,
    Outcome,
    Phase,
    PilotId,
    Placement,
    SiteName,
    StudyState,
    TrialId,
    TrialState,
    schedule_entry,
)

names = st.text(max_size=12)
at = st.floats(0, 2e9)
jobs = st.builds(JobId, names.map(TrialId), st.integers(1, 10**6))
numbers = st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
configs = st.dictionaries(names, values, max_size=4)
nodes = st.lists(
    st.builds(NodeSlots, names.map(NodeName), st.lists(st.integers(0, 15), max_size=4).map(tuple)), max_size=3
).map(tuple)
placements = st.builds(Placement, names.map(SiteName), names.map(PilotId), nodes)
paths = st.none() | names
checkpoints = st.none() | st.builds(Checkpoint, names, st.integers(0, 999))
pilots, sites, trials = names.map(PilotId), names.map(SiteName), names.map(TrialId)
schedules = st.lists(
    st.builds(schedule_entry, st.integers(0, 99), st.integers(1, 99), st.integers(1, 99)), max_size=3
).map(tuple)

events = st.one_of(
    st.builds(
        StudyStarted,
        at,
        st.integers(1, 9999),
        st.dictionaries(sites, st.integers(1, 9), max_size=3),
        retry_failed=st.booleans(),
    ),
    st.builds(PilotStarted, at, pilots, sites, nodes, st.booleans(), st.none() | at, st.none() | at),
    st.builds(PilotEnded, at, pilots, sites, names, st.booleans()),
    st.builds(PilotLost, at, pilots),
    st.builds(PilotQueued, at, pilots, sites, names, names, names, st.none() | at, names),
    st.builds(TrialProposed, at, trials, configs, st.none() | st.integers(1, 99)),
    st.builds(
        UserTold,
        at,
        st.integers(1, 99),
        st.none() | trials,
        st.none() | st.integers(0, 9),
        st.booleans(),
    ),
    st.builds(SearchExhausted, at),
    st.builds(JobStarted, at, jobs),
    st.builds(
        EpochReported,
        at,
        jobs,
        st.integers(1, 999),
        st.dictionaries(names, numbers, max_size=3),
        numbers,
        checkpoints,
        st.lists(names, max_size=3).map(tuple),
        st.none() | st.integers(1, 10**9),
    ),
    st.builds(
        JobEnded,
        at,
        jobs,
        st.sampled_from(Outcome),
        names,
        paths,
        blame=st.none() | st.sampled_from(Blame),
        phase=st.none() | st.sampled_from(Phase),
    ),
    st.builds(TimerFired, at),
    st.builds(SiteDegraded, at, sites, names),
    st.builds(VersionChanged, at, names),
    st.builds(CodeSeen, at, st.dictionaries(names, names)),
    st.builds(StudyInterrupted, at),
)
instructions = st.one_of(
    st.builds(RequestPilot, pilots, sites),
    st.builds(ReleasePilot, pilots),
    st.builds(ProposeTrial, trials),
    st.builds(StartJob, jobs, configs, placements, st.integers(0, 99), st.integers(1, 99), schedules, paths),
    st.builds(ContinueJob, jobs, st.integers(1, 99), st.integers(1, 99), st.none() | st.integers(1, 99)),
    st.builds(EndJob, jobs, names),
    st.builds(ObserveTrial, trials, st.integers(1, 99), numbers),
    st.builds(SetAside, names, sites, names, at, st.integers(1, 10)),
    st.builds(TrialFinished, trials, st.sampled_from(TrialState), st.none() | numbers, names),
    st.builds(FinishStudy, st.sampled_from(StudyState), names),
)
records = st.builds(Record, events, st.lists(instructions, max_size=4).map(tuple))


def write(path: Path, *batches: list[Record]) -> None:
    with Journal(path, "study") as journal:
        for batch in batches:
            journal.append(batch)


def some() -> list[Record]:
    return [
        Record(StudyStarted(1.0, 3, {SiteName("a"): 1}), (RequestPilot(PilotId("a-0"), SiteName("a")),))
    ] + [Record(StudyInterrupted(float(i)), ()) for i in range(3)]


def test_every_kind_of_event_and_instruction_is_drawn_here() -> None:
    assert len(events.element_strategies) == len(get_args(Event))
    assert len(instructions.element_strategies) == len(get_args(Instruction))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(records, min_size=1, max_size=3), max_size=3))
def test_what_was_written_is_read_back_equal(tmp_path_factory, batches: list[list[Record]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, *batches)
    assert list(read(path)) == [record for batch in batches for record in batch]


def test_a_checkpoint_is_two_fields_as_in_the_first_versions() -> None:
    job = JobId(TrialId("0"), 1)
    whole = EpochReported(1.0, job, 4, {}, 1.0, Checkpoint("c", 4))
    behind = EpochReported(1.0, job, 4, {}, 1.0, Checkpoint("c", 3))
    written = [(e["checkpoint"], e["checkpoint_epoch"]) for e in map(encode, (whole, behind))]
    assert written == [("c", None), ("c", 3)]
    old = {k: v for k, v in encode(whole).items() if k != "checkpoint_epoch"}
    assert decode(old, Event) == whole


def test_what_later_versions_added_is_written_only_where_it_says_something() -> None:
    job = JobId(TrialId("0"), 1)
    assert encode(ContinueJob(job, 8, 4)) == {
        "type": "ContinueJob",
        "job": {"trial": "0", "attempt": 1},
        "until": 8,
        "replicas": 4,
    }
    assert encode(ContinueJob(job, 8, 4, 1))["batches"] == 1
    assert "samples" not in encode(EpochReported(1.0, job, 4, {}, 1.0, None))
    assert encode(EpochReported(1.0, job, 4, {}, 1.0, None, (), 448))["samples"] == 448


def test_the_noise_of_gradients_is_written_where_it_is_known_and_comes_back_whole(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    job = JobId(TrialId("0000"), 1)
    event = EpochReported(1.0, job, 4, {}, 1.0, None, (), 448, GradientNoise(1 / 3, 2 / 7))
    assert "noise" not in encode(EpochReported(1.0, job, 4, {}, 1.0, None, (), 448))
    assert encode(event)["noise"] == {"gradient": 1 / 3, "variance": 2 / 7}
    write(path, [Record(event, ())])
    assert [record.event for record in read(path)] == [event]


def test_what_a_report_says_of_its_bits_is_written_where_it_says_something(tmp_path) -> None:
    path, job = tmp_path / "journal.jsonl", JobId(TrialId("0000"), 1)
    event = EpochReported(1.0, job, 4, {}, 1.0, None, exact="yes", devices=("NVIDIA H200",))
    assert not {"exact", "devices"} & encode(EpochReported(1.0, job, 4, {}, 1.0, None)).keys()
    write(path, [Record(event, ())])
    assert [record.event for record in read(path)] == [event]


def test_a_line_is_written_as_it_always_was_whatever_kinds_of_numbers_its_record_has(tmp_path: Path) -> None:
    path, job = tmp_path / "journal.jsonl", JobId(TrialId("0"), 1)
    config = {"lr": np.float64(0.5), "layers": 3, "kind": Blame.SLOT, "sizes": [1, (2, 3)]}
    node = NodeSlots(NodeName("n0"), (0, 1))
    start = StartJob(
        job, config, Placement(SiteName("a"), PilotId("a-0"), (node,)), 0, 2, (schedule_entry(0, 2, 2),), None
    )
    epoch = EpochReported(5, job, 1, {"loss": 3, "acc": math.nan}, 2, Checkpoint("c", 1))
    write(path, [Record(TrialProposed(1, TrialId("0"), config), (start,)), Record(epoch, ())])
    written = '{"lr": 0.5, "layers": 3, "kind": "slot", "sizes": [1, [2, 3]]}'
    assert [line.rsplit(", ", 1)[0] for line in path.read_text().splitlines()[1:]] == [
        f'{{"n": 0, "event": {{"type": "TrialProposed", "at": 1.0, "trial": "0", "config": {written}}}, '
        f'"instructions": [{{"type": "StartJob", "job": {{"trial": "0", "attempt": 1}}, "config": {written}, '
        '"placement": {"site": "a", "pilot": "a-0", "nodes": [{"node": "n0", "gpus": [0, 1]}]}, '
        '"epoch": 0, "until": 2, "schedule": [[0, 2]], "resume_from": null}]',
        '{"n": 1, "event": {"type": "EpochReported", "at": 5.0, "job": {"trial": "0", "attempt": 1}, '
        '"epoch": 1, "metrics": {"loss": 3.0, "acc": NaN}, "seconds": 2.0, "checkpoint": "c", "slots": [], '
        '"checkpoint_epoch": null}, "instructions": []',
    ]


def test_what_cannot_be_written_as_json_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with (
        Journal(path, "study") as journal,
        pytest.raises(TypeError, match="complex cannot be written as JSON"),
    ):
        journal.append([*some(), Record(TrialProposed(1.0, TrialId("0"), {"x": 1j}), ())])
    assert list(read(path)) == []


@pytest.mark.parametrize("words", ["half \ud800 of a pair", "ä\n\x00", "null"])
def test_any_string_of_python_comes_back(tmp_path: Path, words: str) -> None:
    path = tmp_path / "journal.jsonl"
    written = [
        Record(
            PilotEnded(1.0, PilotId("a-0"), SiteName("a"), words),
            (SetAside(words, SiteName("a"), words, 1.0),),
        )
    ]
    write(path, written)
    assert list(read(path)) == written


def test_names_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    finished = TrialFinished(TrialId("0"), TrialState.FAILED, None, "why")
    written = [Record(TimerFired(1.0), (finished,)), Record(SiteDegraded(2.0, SiteName("a"), "slow"), ())]
    write(path, written)
    old = b"".join(map(without_crc, path.read_bytes().splitlines(keepends=True)))
    old = old.replace(b', "version": "%s"' % VERSION.encode(), b"").replace(b"TimerFired", b"TimePassed")
    path.write_bytes(
        old.replace(b"SiteDegraded", b"SiteTroubled").replace(b"TrialFinished", b"ConcludeTrial")
    )
    assert list(read(path)) == written


def test_metrics_that_are_not_finite_survive(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    job = JobId(TrialId("0"), 1)
    write(path, [Record(EpochReported(1.0, job, 1, {"a": math.nan, "b": -math.inf}, 1.0, None), ())])
    (found,) = read(path)
    assert isinstance(found.event, EpochReported)
    assert math.isnan(found.event.metrics["a"])
    assert found.event.metrics["b"] == -math.inf


def test_a_journal_torn_at_any_byte_of_its_last_record_opens_and_goes_on(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    write(whole, some())
    data = whole.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    for cut in range(last, len(data)):
        torn.write_bytes(data[:cut])
        assert list(read(torn)) == some()[:-1]
        with Journal(torn, "study") as journal:
            journal.append(some()[-1:])
        assert torn.read_bytes() == data


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    write(whole, [])
    header = whole.read_bytes()
    for cut in range(len(header)):
        torn.write_bytes(header[:cut])
        assert list(read(torn)) == []
        write(torn, some())
        assert list(read(torn)) == some()


def test_a_journal_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some()[:2])
    write(path, some()[2:])
    assert list(read(path)) == some()
    assert [line.split(b",")[0] for line in path.read_bytes().splitlines()[1:]] == [
        b'{"n": %d' % i for i in range(len(some()))
    ]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some())
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (b"garbage\n", b"\n", b"[]\n", b'{"event": {"type": "Nothing"}, "instructions": []}\n'):
        path.write_bytes(b"".join([*lines[:2], broken, *lines[3:]]))
        with pytest.raises(JournalError, match=r"journal.jsonl:3: not a record"):
            list(read(path))


@pytest.mark.parametrize("content", ["name: study\n", "[]\n", '{"format": 1, "study": "other"}\n', "a: 1"])
def test_a_file_that_is_no_journal_of_this_study_is_refused_and_left_as_it_is(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    with pytest.raises(JournalError, match=r"journal.jsonl:1"):
        Journal(path, "study")
    assert path.read_text() == content


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"format": 99, "study": "study"}\n')
    with pytest.raises(JournalError, match="format 99"):
        list(read(path))
    with pytest.raises(JournalError, match="format 99"):
        Journal(path, "study")


def test_a_missing_journal_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"journal\.jsonl:0: cannot be read"):
        list(read(tmp_path / "journal.jsonl"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as a full disk would [bytes]."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_names_the_journal_which_goes_on_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some()[:2])
    full = files_of_at_most(path.stat().st_size + 10)
    with pytest.raises(JournalError) as error, full, Journal(path, "study") as journal:
        journal.append(some()[2:])
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith("cannot be written: File too large; free space, then resume")
    assert list(read(path)) == some()[:2]
    write(path, some()[2:])
    assert list(read(path)) == some()


def test_a_disk_too_full_for_the_first_line_is_the_same_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with files_of_at_most(10), pytest.raises(JournalError, match="free space, then resume"):
        Journal(path, "study")
    write(path, some())
    assert list(read(path)) == some()


def test_a_line_that_is_missing_or_written_twice_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(JournalError, match=r"jsonl:3: record 2 where 1 belongs: lines are missing; .*resume"):
        list(read(path))
    path.write_bytes(b"".join([*lines[:2], *lines[1:]]))
    with pytest.raises(
        JournalError, match=r"jsonl:3: record 0 where 1 belongs: it was written twice, or two"
    ):
        list(read(path))


def test_a_journal_names_the_version_that_began_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some())
    assert json.loads(path.read_bytes().splitlines()[0])["version"] == VERSION
    assert version_of(path) == VERSION


@pytest.mark.slow
def test_one_flipped_bit_anywhere_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some())
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        line = whole.count(b"\n", 0, bit // 8) + 1
        with pytest.raises(JournalError, match=rf"journal\.jsonl:{line}: ") as error:
            list(read(path))
        assert "put a sound copy of the file in its place" in str(error.value) or line == 1
        assert path.read_bytes() == damaged, "nothing is lost"


def test_a_record_that_lost_its_check_value_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some())
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        without = [*lines]
        without[number] = without_crc(without[number])
        path.write_bytes(b"".join(without))
        with pytest.raises(JournalError, match=rf"jsonl:{number + 1}: .*it has no check value"):
            list(read(path))


def test_a_journal_without_check_values_is_read_and_goes_on_with_them(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some()[:2])
    old = b"".join(map(without_crc, path.read_bytes().splitlines(keepends=True)))
    old = old.replace(b', "version": "%s"' % VERSION.encode(), b"")
    path.write_bytes(old)
    assert version_of(path) == ""
    write(path, some()[2:])
    assert list(read(path)) == some()
    assert [b'"crc"' in line for line in path.read_bytes().splitlines()] == [False] * 3 + [True] * 2


def test_what_is_cut_off_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, some())
    with path.open("ab") as file:
        file.write(b'{"n": 4, "ev')
    write(path, [])
    assert caplog.messages == [f"{path}:6: torn by a crash; nobody has acted on it, it is cut off"]
    assert list(read(path)) == some()


def test_a_journal_torn_in_the_first_line_of_another_version_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"format": 1, "study": "study", "version": "0.0.')
    write(path, some())
    assert list(read(path)) == some()


def without_crc(line: bytes) -> bytes:
    return re.sub(rb', "crc": "[0-9a-f]{8}"', b"", line)


def test_a_pilot_of_a_record_that_does_not_say_so_was_usable_and_is_asked_for_again_at_once() -> None:
    first = {"type": "PilotEnded", "at": 1.0, "pilot": "a-0", "site": "a", "cause": "walltime"}
    found = decode(first, Event)
    assert (found.usable, found.refused) == (True, False)
