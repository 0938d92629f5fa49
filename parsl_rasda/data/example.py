"""Records of TensorFlow's kind ``tf.train.Example``: features by name, without TensorFlow or protobuf.

Source:
    TensorFlow, ``core/example/{example,feature}.proto``; Protocol Buffers, "Encoding"::

        Example {Features features = 1}       Features {map<string, Feature> feature = 1}
        Feature {oneof {BytesList 1, FloatList 2, Int64List 3}}       each list {repeated value = 1}
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

Values: TypeAlias = list[bytes | float | int]  # all of one type
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}  # how a field is encoded, and bytes of fixed length
_SEVEN_BITS, _LONGEST, _SIGN = 0x7F, 10, 1 << 63  # of a number


def features_of(record: bytes) -> dict[str, Values]:
    """Return the features of a record.

    Raises:
        ValueError: If it is no such record.
    """
    features: dict[str, Values] = {}
    for message in _messages(memoryview(record), 1):
        for entry in _messages(message, 1):
            name = b"".join(_messages(entry, 1)).decode()
            features[name] = next((_values(feature) for feature in _messages(entry, 2)), [])
    return features


def _values(feature: memoryview) -> Values:
    for kind, values in _fields(feature):
        match kind, values:
            case 1, memoryview():
                return [bytes(value) for value in _messages(values, 1)]
            case 2, memoryview():
                return [x for part in _packed(values) for x in _floats(part)]
            case 3, memoryview():
                return [x for part in _packed(values) for x in _integers(part)]
            case _:
                raise ValueError(f"a feature of the unknown kind {kind}")
    return []


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the fields of this number, which are messages, texts or bytes."""
    for found, value in _fields(message):
        if found == number:
            if not isinstance(value, memoryview):
                raise ValueError(f"a number in place of field {number}")
            yield value


def _packed(values: memoryview) -> Iterator[memoryview | int]:
    return (value for number, value in _fields(values) if number == 1)


def _floats(part: memoryview | int) -> list[float]:
    if isinstance(part, int) or len(part) % 4:
        raise ValueError("a list of numbers that are no floats")
    return list(struct.unpack(f"<{len(part) // 4}f", part))


def _integers(part: memoryview | int) -> Iterator[int]:
    if isinstance(part, int):
        yield _signed(part)
        return
    at = 0
    while at < len(part):
        value, at = _varint(part, at)
        yield _signed(value)


def _signed(value: int) -> int:
    return value - 2 * _SIGN if value >= _SIGN else value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield number and value of each field; four bytes, which are a float, stay bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        encoding = key & 7
        if encoding == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if encoding == _BYTES:
            length, at = _varint(message, at)
        elif encoding in _FIXED:
            length = _FIXED[encoding]
        else:
            raise ValueError(f"a field of the unknown encoding {encoding}")
        if at + length > len(message):
            raise ValueError("a field that ends after its message")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST]):
        value |= (byte & _SEVEN_BITS) << 7 * place
        if byte <= _SEVEN_BITS:
            return value, at + place + 1
    raise ValueError("a number that does not end")
