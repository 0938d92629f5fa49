"""Searches of one program take turns on the executors they share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.workflow.executor_queue import ExecutorQueue, Place, queue_of

WAIT_S = 10


class Kernel:
    """As far as turns are concerned, any object."""


def test_the_second_on_an_executor_waits_for_the_first_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    turns, waits, had = ExecutorQueue(), threading.Event(), threading.Event()

    def second() -> None:
        with turns.place("second", ["gpu", "more"]).turn(waits.set):
            had.set()

    with caplog.at_level("INFO"), ThreadPoolExecutor(1) as thread:
        with turns.place("first", ["gpu"]).turn():
            thread.submit(second)
            assert waits.wait(WAIT_S)
            assert not had.is_set()
        assert had.wait(WAIT_S)
    assert "waits for its turn search=second executors=gpu,more behind=first" in caplog.text


def test_searches_on_different_executors_or_of_different_programs_do_not_meet() -> None:
    one, other = Kernel(), Kernel()
    with (
        queue_of(one).place("a", ["gpu"]).turn(),
        queue_of(one).place("b", ["cpu"]).turn(),
        queue_of(other).place("c", ["gpu"]).turn(),
    ):
        assert queue_of(one) is queue_of(one)


def test_they_have_their_turns_in_the_order_they_queued_up_not_in_that_of_their_threads() -> None:
    turns, waits, order = ExecutorQueue(), threading.Event(), list[str]()
    first, second = turns.place("first", ["gpu"]), turns.place("second", ["gpu"])
    first.join()
    second.join()

    def have(place: Place) -> None:
        with place.turn(waits.set):
            order.append(place.search)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(have, second)
        assert waits.wait(WAIT_S)
        have(first)
    assert order == ["first", "second"]


def test_one_that_leaves_before_its_turn_is_in_nobodys_way() -> None:
    turns = ExecutorQueue()
    place = turns.place("first", ["gpu"])
    place.join()
    place.leave()
    with turns.place("second", ["gpu"]).turn():
        place.leave()


def test_one_that_gives_up_waiting_is_in_nobodys_way() -> None:
    turns = ExecutorQueue()

    def give_up() -> None:
        raise TimeoutError

    with (
        turns.place("first", ["gpu"]).turn(),
        pytest.raises(TimeoutError),
        turns.place("second", ["gpu"]).turn(give_up),
    ):
        pass
    with turns.place("third", ["gpu"]).turn():
        pass


def test_one_whose_turn_comes_when_it_is_too_late_does_not_begin() -> None:
    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError), ExecutorQueue().place("alone", ["gpu"]).turn(give_up):
        pytest.fail("it began")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=2, max_size=8))
def test_whatever_they_use_nobody_shares_and_everybody_has_a_turn(wanted: list[set[str]]) -> None:
    turns, together = ExecutorQueue(), threading.Barrier(len(wanted))
    used: set[str] = set()
    clashes: list[set[str]] = []

    def search(labels: set[str]) -> bool:
        together.wait(WAIT_S)
        with turns.place("search", labels).turn():
            clashes.append(used & labels)
            used.update(labels)
            used.difference_update(labels)
        return True

    with ThreadPoolExecutor(len(wanted)) as threads:
        assert all(threads.map(search, wanted, timeout=WAIT_S))
    assert not any(clashes)
