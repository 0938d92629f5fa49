"""Which of several runs has a pilot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.agent import pilot_lease
from parsl_rasda.agent.pilot_lease import LEASE_S, acquire, release

WORDS = "another study (heat, run 1) uses this pilot"


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("node") / "claims"
    monkeypatch.setattr(pilot_lease, "FOLDER", path)
    return path


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pilot_lease, "time", made)
    return made


def test_the_first_run_has_it_until_it_gives_it_up() -> None:
    assert acquire("block", "1", "heat") == ""
    assert acquire("block", "2", "flow") == WORDS
    assert acquire("another block", "2", "flow") == ""
    release("block", "2")
    assert acquire("block", "2", "flow") == WORDS, "who does not have it cannot give it up"
    release("block", "1")
    assert acquire("block", "2", "flow") == ""


def test_the_next_controller_of_a_run_has_what_the_run_had() -> None:
    assert acquire("block", "1", "heat") == ""
    assert acquire("block", "1", "heat") == ""


def test_a_lease_expires_if_nobody_renews_it(clock: Clock) -> None:
    acquire("block", "1", "heat")
    clock.now += LEASE_S - 5
    acquire("block", "1", "heat")
    clock.now += LEASE_S - 5
    assert acquire("block", "2", "flow") == WORDS, "it was renewed"
    clock.now += 5
    assert acquire("block", "2", "flow") == ""


def test_a_lease_that_cannot_be_read_is_none(folder: Path) -> None:
    acquire("block", "1", "heat")
    (file,) = folder.glob("pilot-*")
    file.write_text("{")
    assert acquire("block", "2", "flow") == ""


def test_without_a_name_a_pilot_is_everybodys(folder: Path) -> None:
    assert acquire("", "1", "heat") == acquire("", "2", "flow") == ""
    assert not folder.exists()


@given(st.lists(st.tuples(st.sampled_from("AB"), st.booleans(), st.sampled_from([0.0, LEASE_S / 2]))))
def test_no_two_runs_ever_have_it_at_once(steps: list[tuple[str, bool, float]]) -> None:
    clock, held = Clock(), dict[str, float]()
    for file in pilot_lease.FOLDER.glob("pilot-*"):
        file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pilot_lease, "time", clock)
        for run, takes, wait_s in steps:
            clock.now += wait_s
            if not takes:
                release("block", run)
                held.pop(run, None)
            elif not acquire("block", run, "study"):
                held[run] = clock.now + LEASE_S
            assert sum(until > clock.now for until in held.values()) <= 1
