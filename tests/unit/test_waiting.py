"""Whoever waits in a test waits here, and is told in vain for what."""

from __future__ import annotations

import itertools

import pytest
from backend_tools import eventually, within


def test_the_first_truth_comes_back() -> None:
    counted = itertools.count()
    assert eventually(lambda: next(counted) or None) == 1
    assert within(5.0, lambda: "at once") == "at once"


def test_what_never_comes_is_named_by_its_words_or_by_its_source() -> None:
    assert within(0.02, list) == []
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: the pilot joins"):
        eventually(lambda: False, "the pilot joins", 0.02)
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: .*lambda: None"):
        eventually(lambda: None, deadline_s=0.02)
    with pytest.raises(AssertionError, match=r"method.* isdigit"):
        eventually("never".isdigit, deadline_s=0.02)
