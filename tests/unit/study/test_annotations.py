"""Which constants fit an annotation, and which nobody can tell."""

from __future__ import annotations

import pytest

from parsl_rasda.study_code.annotations import is_of


@pytest.mark.parametrize(
    ("annotation", "values", "others"),
    [
        ("int", [64, {"alps": 8, "fjord": 9}], ["sixty", 2.5, True, None, [1]]),
        ("float", [64, 2.5], ["2.5", False, None]),
        ("str", ["a"], [1, None]),
        ("bool", [True], [1, "true"]),
        ("list[int]", [[], ["a"]], [1, "abc"]),
        ("int | None", [None, 3], ["none"]),
        ("str | Path", ["a", 3], []),
        ("Optional[int]", ["a", None], []),
        ("np.ndarray", [3], []),
        ("'int'", ["a"], []),
    ],
)
def test_only_what_is_certain_is_refused(annotation: str, values: list[object], others: list[object]) -> None:
    assert [v for v in values if not is_of(v, annotation)] == []
    assert [v for v in others if is_of(v, annotation)] == []
