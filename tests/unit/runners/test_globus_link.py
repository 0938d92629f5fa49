from __future__ import annotations

import inspect
import threading
from uuid import UUID

import globus_compute_sdk.sdk.executor as sdk
import pytest

from parsl_rasda.runners.globus_link import end_watchers

MINE, OTHER = UUID(int=1), UUID(int=2)


class Watcher(threading.Thread):
    """What the SDK's thread for a task group shows of itself."""

    def __init__(self, group: UUID) -> None:
        super().__init__(daemon=True)
        self.task_group_id = group
        self.over = threading.Event()
        self.told: list[tuple[bool, bool]] = []

    def run(self) -> None:
        self.over.wait()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.told.append((wait, cancel_futures))
        self.over.set()


@pytest.fixture
def watchers():
    started = [Watcher(MINE), Watcher(OTHER)]
    for watcher in started:
        watcher.start()
    yield started
    for watcher in started:
        watcher.over.set()
        watcher.join()


def test_only_the_watchers_of_this_group_are_ended(watchers) -> None:
    mine, other = watchers
    end_watchers(MINE)
    assert mine.told == [(False, True)]
    assert not other.told


def test_an_sdk_without_such_threads_is_left_alone() -> None:
    end_watchers(UUID(int=3))


def test_the_sdk_still_shows_what_we_look_for() -> None:
    assert issubclass(sdk._ResultWatcher, threading.Thread)
    assert {"wait", "cancel_futures"} <= inspect.signature(sdk._ResultWatcher.shutdown).parameters.keys()
    assert "self.task_group_id = " in inspect.getsource(sdk._ResultWatcher.__init__)
