"""Files as TensorFlow writes them, written here by what its documentation says."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from google_crc32c import value as crc32c

Feature = bytes | int | list[bytes] | list[int] | list[float]


def write_records(path: Path, records: Iterable[bytes], *, idx: bool = False) -> Path:
    """Write a file, and its index where asked to."""
    parts = [framed(record) for record in records]
    path.write_bytes(b"".join(parts))
    if idx:
        starts = [sum(map(len, parts[:n])) for n in range(len(parts))]
        lines = [f"{start} {len(part)}\n" for start, part in zip(starts, parts, strict=True)]
        Path(f"{path}.idx").write_text("".join(lines), encoding="utf-8")
    return path


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + _masked(length) + record + _masked(record)


def _masked(content: bytes) -> bytes:
    crc = crc32c(content)
    rotated = (crc >> 15) | (crc << 17) % 2**32
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def example(features: Mapping[str, Feature], *, packed: bool = True) -> bytes:
    """Return a tf.train.Example."""
    entries = [
        _field(1, _field(1, name.encode()) + _field(2, _feature(value, packed)))
        for name, value in features.items()
    ]
    return _field(1, b"".join(entries))


def _feature(value: Feature, packed: bool) -> bytes:
    values = value if isinstance(value, list) else [value]
    match values:
        case [bytes(), *_]:
            return _field(1, b"".join(_field(1, v) for v in values))
        case [float(), *_]:
            parts = [struct.pack("<f", v) for v in values]
            return _field(2, _field(1, b"".join(parts)) if packed else b"".join(b"\x0d" + p for p in parts))
        case [int(), *_]:
            numbers = [_varint(v % 2**64) for v in values]
            return _field(
                3, _field(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers)
            )
        case _:
            return b""


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
