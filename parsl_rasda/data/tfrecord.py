"""TFRecord files, read without TensorFlow: records of any length, one after another.

A record is its length (8 bytes), a checksum of the length, its bytes, and a checksum of the bytes. As a
shard, such a file has one array of byte strings, ``record``. ``FILE.idx`` beside the file tells where its
records begin, in lines ``offset bytes``, as written by the tools of DALI and others. Without it the file is
scanned whenever it is opened; `indexed` scans it once. This format is read only.

Source:
    TensorFlow, ``core/lib/io/record_writer.h``; checksums are CRC-32C, masked as in ``hash/crc32c.h``.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from parsl_rasda.errors import DataError

RECORD: Final = "record"  # the name of the only array
_HEAD: Final = struct.Struct("<QI")  # length and its checksum
_CHECK: Final = struct.Struct("<I")
_AROUND: Final = _HEAD.size + _CHECK.size  # bytes around the content of a record


class TFRecord:
    """The format."""

    patterns: ClassVar[tuple[str, ...]] = ("*.tfrecord", "*.tfrecords", f"*-{'[0-9]' * 5}-of-{'[0-9]' * 5}")

    def open(self, path: str) -> TFRecordShard:
        """Open a file, and find where its records are."""
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123 # the shard closes it
        except OSError as error:
            raise DataError(path, f"it cannot be opened: {error.strerror}") from error
        try:
            return TFRecordShard(path, file, _starts(path, file.fileno()))
        except BaseException:
            file.close()
            raise


class TFRecordShard:
    """An open file."""

    def __init__(self, path: str, file: FileIO, starts: NDArray[np.int64]) -> None:
        """Keep where records begin and where the last one ends."""
        self._path, self._file, self._starts = path, file, starts

    @property
    def starts(self) -> list[int]:
        """The offsets of all records, and the end of the last one [bytes]."""
        starts: list[int] = self._starts.tolist()
        return starts

    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any], int]]:
        """Return the only array: byte strings, not in chunks."""
        return {RECORD: ((len(self._starts) - 1,), np.dtype(object), 0)}

    def read(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return records, read at once, after checking their checksums."""
        first, last = self._span(name, begin, end)
        content = memoryview(os.pread(self._file.fileno(), last - first, first))
        if len(content) < last - first:
            raise DataError(self._path, f"it has been cut short, at byte {first + len(content)}")
        starts = self._starts[begin : end + 1].tolist()
        records = np.empty(max(0, len(starts) - 1), dtype=object)
        for number, start in enumerate(starts[:-1]):
            records[number] = self._record(content[start - first : starts[number + 1] - first], start)
        return records

    def announce(self, name: str, begin: int, end: int) -> None:
        """Tell the system to fetch records."""
        first, last = self._span(name, begin, end)
        os.posix_fadvise(self._file.fileno(), first, last - first, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _span(self, name: str, begin: int, end: int) -> tuple[int, int]:
        if name != RECORD:
            raise DataError(self._path, f"it has no array {name!r}, but {RECORD}")
        last = len(self._starts) - 1
        return int(self._starts[min(begin, last)]), int(self._starts[min(end, last)])

    def _record(self, framed: memoryview, start: int) -> bytes:
        length = _length(self._path, framed[: _HEAD.size], start)
        record = bytes(framed[_HEAD.size : _HEAD.size + length])
        if len(framed) != length + _AROUND:
            found = f"{length} bytes, not {len(framed) - _AROUND} as its index says"
            raise DataError(self._path, f"the record at byte {start} has {found}")
        if masked_crc32c(record) != _CHECK.unpack(framed[-_CHECK.size :])[0]:
            raise DataError(self._path, f"the record at byte {start} is damaged: its checksum differs")
        return record


def masked_crc32c(content: bytes | memoryview) -> int:
    """Return the checksum of these bytes as it is in a file."""
    plain = int(crc32c(bytes(content)))
    return ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF


def indexed(file: Path, directory: Path) -> tuple[Path, int]:
    """Return a path at which a file can be opened without a scan, and its number of records.

    The path is the file itself if its index is beside it. If not, the file is scanned once; the path is then
    a link in the directory, beside which an index is written.

    Raises:
        DataError: If the file is missing, cut short, or not a TFRecord file.
    """
    if not _idx(str(file)).exists():
        link = directory / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.absolute())
        lines = "".join(
            f"{start} {end - start}\n" for start, end in itertools.pairwise(_starts_of(str(file)))
        )
        _idx(str(link)).write_text(lines, encoding="utf-8")
        file = link
    return file, len(_starts_of(str(file))) - 1


def _idx(path: str) -> Path:
    return Path(f"{path}.idx")


def _starts_of(path: str) -> list[int]:
    shard = TFRecord().open(path)
    shard.close()
    return shard.starts


def _starts(path: str, descriptor: int) -> NDArray[np.int64]:
    """Return the offsets of all records, and the end of the file."""
    idx, size = _idx(path), os.fstat(descriptor).st_size
    if not idx.exists():
        return np.fromiter(_scanned(path, descriptor, size), np.int64)
    try:
        offsets, sizes = np.array(idx.read_text(encoding="utf-8").split(), np.int64).reshape(-1, 2).T
    except ValueError as error:
        raise DataError(
            str(idx), f"it is not an index of records, with lines `offset bytes`: {error}"
        ) from error
    starts = np.concatenate([[0], offsets + sizes])
    if (starts[:-1] != offsets).any():
        raise DataError(str(idx), f"after byte {starts[:-1][starts[:-1] != offsets][0]} records are left out")
    if starts[-1] != size:
        raise DataError(path, f"it ends at byte {size}, but at byte {starts[-1]} as {idx.name} says")
    return starts


def _scanned(path: str, descriptor: int, size: int) -> Iterator[int]:
    """Yield the offsets of all records, and the end of the file; only lengths are read."""
    start = 0
    while start < size:
        yield start
        end = start + _length(path, os.pread(descriptor, _HEAD.size, start), start) + _AROUND
        if end > size:
            raise DataError(path, f"it is cut short at byte {size}: its record at byte {start} ends at {end}")
        start = end
    yield start


def _length(path: str, head: bytes | memoryview, start: int) -> int:
    """Return the length of a record from its first bytes."""
    if len(head) < _HEAD.size:
        raise DataError(path, f"it is cut short: {len(head)} bytes at byte {start} are too few for a record")
    length, check = _HEAD.unpack(head)
    if masked_crc32c(head[: -_CHECK.size]) != check:
        raise DataError(path, f"no record begins at byte {start} (wrong checksum). Is it a TFRecord file?")
    return int(length)
