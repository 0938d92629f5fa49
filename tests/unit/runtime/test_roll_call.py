"""That ranks which have met for the last time all know of it before the one with the store leaves."""

from __future__ import annotations

import threading
from datetime import timedelta

from torch._C._distributed_c10d import HashStore

from parsl_rasda.runtime.engine.roll_call import RollCall


def test_the_rank_that_has_the_store_leaves_last() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=10))
    one, other = (RollCall(rank, 2, store, patience_s=10.0) for rank in range(2))
    has_left = threading.Event()

    def first() -> None:
        one.meet("the end")
        one.part()
        has_left.set()

    thread = threading.Thread(target=first)
    thread.start()
    other.meet("the end")
    assert not has_left.wait(0.2), "the other may not have its answer yet"
    other.part()
    assert has_left.wait(10.0)
    thread.join()
