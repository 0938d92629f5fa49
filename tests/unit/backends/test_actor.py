"""The thread of a backend: nobody waits for one that is dead, and its bugs are told."""

from __future__ import annotations

import pytest

from parsl_rasda.backends.actor import Actor


def fail() -> None:
    raise KeyError("a bug")


def test_a_bug_is_told_and_the_next_task_follows() -> None:
    bugs: list[Exception] = []
    actor = Actor("test", on_bug=bugs.append)
    actor.post(fail)
    actor.call(lambda: None)
    assert [type(bug) for bug in bugs] == [KeyError]
    actor.end()


def test_to_wait_for_a_thread_that_has_ended_is_an_error() -> None:
    actor = Actor("test")
    actor.end()
    with pytest.raises(RuntimeError, match="has ended"):
        actor.call(lambda: None)
