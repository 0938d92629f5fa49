from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study.document import dump_document, parse_document
from parsl_rasda.types import JSON


def read(text: str, **environment: str) -> JSON:
    document = parse_document(text, "a.yaml", environment)
    assert document.mistakes == []
    assert isinstance(document.data, dict)
    return document.data["a"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E5", -1e5),
        (".5", 0.5),
        ("2.", 2.0),
        ("12", 12),
        ("-3", -3),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("01:30:00", "01:30:00"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("[1, x, {y: 2.0}]", [1, "x", {"y": 2.0}]),
        (".inf", float("inf")),
    ],
)
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(text: str, value: JSON) -> None:
    found = read(f"a: {text}\n")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${N}", 4),
        ("'${N}'", "4"),
        ("gpu-${P}", "gpu-debug"),
        ("${MISSING:-7}", 7),
        ("${MISSING:-}", None),
        ("${EMPTY:-else}", "else"),
        ("${EMPTY}", None),
        ("$${SLURM_JOBID}", "${SLURM_JOBID}"),
        ("$HOME/${P}", "$HOME/debug"),
        ("${#array} ${x%.*}", "${#array} ${x%.*}"),
        ("{b: ['${P}']}", {"b": ["debug"]}),
    ],
)
def test_variables_are_replaced_before_a_value_is_understood(text: str, value: JSON) -> None:
    assert (
        read(f"a: {text}\n".replace(": ${#", ": '${#").replace(".*}\n", ".*}'\n"), N="4", P="debug", EMPTY="")
        == value
    )


def test_a_value_that_looks_like_a_variable_is_not_replaced_again() -> None:
    assert read("a: ${OUTER}\n", OUTER="${INNER}") == "${INNER}"


def test_every_missing_variable_is_named_with_its_line() -> None:
    document = parse_document("a: ${ONE}\nb:\n  - x\n  - ${TWO}-${THREE}\n", "site.yaml", {})
    assert [(m.line, m.key) for m in document.mistakes] == [(1, "a"), (4, "b.1"), (4, "b.1")]
    assert "set TWO, write ${TWO:-default}, or $${TWO} to keep the text" in str(document.mistakes[1])


def test_an_alias_may_be_used_twice() -> None:
    assert read("b: &x {y: 1}\na: [*x, *x]\n") == [{"y": 1}, {"y": 1}]


def test_a_block_is_repeated_by_merging_it_and_may_be_changed() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {z: 3}\nc: {<<: *a, y: 5}\nd:\n  <<: [*a, *b]\n  w: 4\n"
    data = parse_document(text, "f.yaml", {}).data
    assert data["c"] == {"x": 1, "y": 5}
    assert data["d"] == {"x": 1, "y": 2, "z": 3, "w": 4}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: &a {<<: *a}\n", "a.<<: found an alias of something it is part of"),
        ("a: &a {b: &b {<<: *a}, <<: *b}\n", "found an alias of something it is part of"),
        ("a: &a {b: &b {<<: *a}, <<: *b}\nc: {<<: *b}\n", "c.<<: found an alias of something it is part of"),
        ("a: &a {? [x] : y}\nb: {<<: *a}\n", "b.?: found the key ?, which is not a string"),
    ],
)
def test_a_merge_that_cannot_be_is_a_mistake(text: str, found: str) -> None:
    mistakes = parse_document(text, "f.yaml", {}).mistakes
    assert any(found in str(mistake) for mistake in mistakes), mistakes


def test_an_unclosed_bracket_is_told_where_it_begins() -> None:
    with pytest.raises(InvalidFileError) as error:
        parse_document("a: [1,\nb: 2\n", "a.yaml", {})
    assert "line 1" in str(error.value) or ":1:" in str(error.value)


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "${X}",
        "$${X}",
        "$$${",
        "1e-4",
        "01:30:00",
        "null",
        "yes",
        "~",
        "=",
        "<<",
        "- a",
        "a: b",
        "#",
        "\t",
        "\x85",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(texts, v), max_leaves=12)


@given(data=st.dictionaries(texts, values))
def test_what_is_dumped_is_read_as_it_was(data: dict[str, JSON]) -> None:
    document = parse_document(dump_document(data), "a.yaml", {"X": "replaced"})
    assert document.mistakes == []
    assert document.data == data
