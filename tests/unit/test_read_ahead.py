from __future__ import annotations

import gc
import itertools
import threading

import pytest
from backend_tools import eventually

from parsl_rasda.read_ahead import read_ahead


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "rasda-read-ahead"]


def test_items_come_in_order_and_the_thread_ends_with_the_last() -> None:
    assert list(read_ahead(iter(range(100)), 4)) == list(range(100))
    assert readers() == []


def test_the_thread_is_ahead_by_its_depth_and_not_more() -> None:
    begun = []
    items = read_ahead((begun.append(i) or i for i in itertools.count()), 3)
    assert begun == [], "nothing is read before it is asked for"
    assert next(items) == 0
    eventually(lambda: len(begun) == 5)  # one taken, three waiting, one in hand
    assert next(items) == 1
    eventually(lambda: len(begun) == 6)
    items.close()
    assert len(begun) <= 7
    assert readers() == []


def test_the_thread_ends_on_break() -> None:
    for item in read_ahead(itertools.count(), 4):
        if item == 3:
            break
    assert readers() == []


def test_the_thread_ends_when_the_loop_raises() -> None:
    def loop() -> None:
        for item in read_ahead(itertools.count(), 4):
            if item == 3:
                raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        loop()
    gc.collect()
    eventually(lambda: readers() == [])


def test_the_thread_ends_when_the_iterator_is_forgotten() -> None:
    items = read_ahead(itertools.count(), 4)
    next(items)
    assert len(readers()) == 1
    del items
    assert readers() == []


def test_an_error_is_raised_after_what_came_before_it() -> None:
    def failing():
        yield from (1, 2)
        raise OSError("no such block")

    seen = []
    with pytest.raises(OSError, match="no such block"):
        seen.extend(iter_into(seen, read_ahead(failing(), 8)))
    assert seen == [1, 2]
    assert readers() == []


def iter_into(seen, items):
    for item in items:
        seen.append(item)
    return []
