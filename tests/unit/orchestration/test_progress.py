"""What a run tells who shows it."""

from __future__ import annotations

from typing import Any

from parsl_rasda.orchestration.progress import GuardedProgress, NoProgress


class Shown(NoProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def search(self, *named: Any, alone: bool) -> Shown:
        self.told.append((*named, alone))
        return self

    def add(self, event: Any, instructions: Any) -> None:
        self.told.append((event, instructions))


def test_a_display_that_works_is_told_everything() -> None:
    shown = Shown()
    GuardedProgress(shown).search("a", None, None, alone=True).add("event", ("instruction",))
    assert shown.told == [("a", None, None, True), ("event", ("instruction",))]
