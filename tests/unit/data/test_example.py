"""Features are read from records as protobuf writes them; anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.data.example import Values, features_of
from tests.unit.data.tensorflow_files import example

floats = st.floats(width=32, allow_nan=False)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(st.lists(st.binary(max_size=200)), st.lists(floats), st.lists(integers))


@given(features=st.dictionaries(st.text(max_size=20), values, max_size=6), packed=st.booleans())
def test_what_was_encoded_is_read_again(features: dict[str, Values], packed: bool) -> None:
    assert features_of(example(features, packed=packed)) == features


def test_bytes_of_the_protobuf_documentation_are_read() -> None:
    # Example {features {feature {key: "n" value {int64_list {value: 150}}}}}, by hand
    record = bytes.fromhex("0a0d 0a0b 0a016e 1206 1a04 0a02 9601")
    assert features_of(record) == {"n": [150]}


@given(record=st.binary(max_size=200))
def test_bytes_that_are_no_example_are_refused_or_have_features(record: bytes) -> None:
    try:
        features = features_of(record)
    except ValueError:
        return
    assert isinstance(features, dict)


@pytest.mark.parametrize("record", [b"\x0a\x05abc", b"\x0b", b"\xff" * 12])
def test_a_record_of_another_kind_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="parsing"):
        features_of(record)
