"""The study's journal: every event and what followed from it, synced before it is acted on.

One JSON line a record: ``{"n": 7, "event": {...}, "instructions": [...], "crc": "1b0f4a3c"}``; the first
line names the format, the study and the version of the product. A torn last line was never acted on and is
cut off.

``crc`` is the CRC-32C of all before it in its line. Lines of earlier versions have none and are read, up to
the first one that has.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from google_crc32c import value as crc_of
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from parsl_rasda.atomic_files import sync_folder
from parsl_rasda.errors import JournalError
from parsl_rasda.orchestration.events import ContinueJob, EpochReported, Event, Instruction
from parsl_rasda.protocol import checkpoint_fields, checkpoint_in

FORMAT = 1
VERSION = version("parsl_rasda")
# Names under which earlier versions wrote records; they are read for ever.
_OLD_NAMES = {"SiteTroubled": "SiteDegraded", "TimePassed": "TimerFired", "ConcludeTrial": "TrialFinished"}
# Fields that came later, and are written only where they say something.
_ADDED: dict[Any, tuple[str, ...]] = {  # Any: types of records
    EpochReported: ("samples", "noise", "steps"),
    ContinueJob: ("batches",),
}
_CRC = b', "crc": "%08x"}'
_CRC_FORM = re.compile(rb', "crc": "[0-9a-f]{8}"\}')
_CRC_BYTES, _CRC_AT = 20, slice(10, 18)
_ADVICE = "it was left as it is: put a sound copy of the file in its place, then resume"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One event and the instructions that followed from it."""

    event: Event
    instructions: tuple[Instruction, ...]


class Journal:
    """Appends records to a file; use as a context manager."""

    def __init__(self, path: Path, study: str) -> None:
        """Open a journal for appending; a torn last line is cut off.

        Raises:
            JournalError: If the file is not a journal of this study, or cannot be written.
        """
        self.path = path
        lines, torn = _survey(path)
        begin = json.dumps({"format": FORMAT, "study": study})[:-1].encode()  # as every version does
        is_fresh = not lines and (begin.startswith(torn) or torn.startswith(begin))
        if not is_fresh:
            _check_header(path, next((line for _, line in _lines(path)), torn), study)
        if torn:
            logger.warning("%s:%d: torn by a crash; nobody has acted on it, it is cut off", path, lines + 1)
            os.truncate(path, path.stat().st_size - len(torn))
        self._count = max(0, lines - 1)
        self._file = path.open("ab", buffering=0)  # what a full disk refused must not come again at `close`
        if is_fresh:
            try:
                self._write(_line({"format": FORMAT, "study": study, "version": VERSION}))
            except JournalError:
                self.close()
                raise
            sync_folder(path.parent)

    def append(self, records: Iterable[Record]) -> None:
        """Write records and sync them to disk, all at once.

        Raises:
            JournalError: If that fails; what was half written is cut off when the journal is opened again.
        """
        lines = []
        for record in records:
            instructions = [encode(i) for i in record.instructions]
            lines.append(
                _line({"n": self._count, "event": encode(record.event), "instructions": instructions})
            )
            self._count += 1
        self._write(b"".join(lines))

    def _write(self, data: bytes) -> None:
        handle = self._file.fileno()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except OSError as error:
            found = f"cannot be written: {error.strerror}; free space, then resume"
            raise JournalError(str(self.path), 0, found) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a journal in order; a torn last line is passed over.

    Raises:
        JournalError: If the file is missing, not a journal, or damaged before its last line, or if its
            records do not count up by one.
    """
    event_in, instruction_in = _readers(Event), _readers(Instruction)
    is_sealed = False
    for number, line in _lines(path):
        try:
            is_sealed = _check(line, must_be_sealed=is_sealed)
            data = _json(line)
            if number == 1:
                _check_format(path, data, is_sealed=is_sealed)
                continue
            event = event_in[data["event"]["type"]](data["event"])
            instructions = tuple([instruction_in[i["type"]](i) for i in data["instructions"]])
            count = data["n"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, number, f"not a record of a journal ({_words(error)})") from error
        if count != number - 2:  # lines count from 1, and the first is the header
            raise _damaged(path, number, _out_of_order(count, number - 2))
        yield Record(event, instructions)


@dataclass(frozen=True, slots=True)
class Records(Collection[Record]):
    """The first records of a journal, read whenever they are looked through: all of them may be too many."""

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Record]:
        return islice(read(self.path), self.count)

    def __contains__(self, record: object) -> bool:
        return any(record == one for one in self)


def version_of(path: Path) -> str:
    """Return the version of the product that began a journal; empty if it did not say.

    Raises:
        JournalError: If the file is missing or not a journal.
    """
    return next((_check_header(path, line)["version"] for _, line in _lines(path)), "")


def encode(record: Event | Instruction) -> dict[str, Any]:
    """Return a record as plain JSON with its type's name."""
    name = type(record).__name__
    kind: Any = type(record)  # Any: mypy sees a union of unhashable types
    data = {"type": name, **_adapter(kind).dump_python(record, mode="json")}
    if isinstance(record, EpochReported):
        data |= checkpoint_fields(record.checkpoint, record.epoch)
    for added in _ADDED.get(kind, ()):
        if data[added] in (None, []):
            del data[added]
    return data


def decode(data: Mapping[str, Any], union: Any) -> Any:  # Any: one of the union's members
    """Return the record that `encode` wrote, if it is a member of the union."""
    return _readers(union)[data["type"]](data)


@cache
def _readers(union: Any) -> dict[str, Callable[[Mapping[str, Any]], Any]]:  # Any: a closed set of types
    """Return, by the name of each type, old names included, what makes a record of its JSON."""
    readers: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
    for kind in get_args(union):
        readers[kind.__name__] = _adapter(kind).validator.validate_python  # it passes over unknown keys
        if kind is EpochReported:
            readers[kind.__name__] = _epoch_in
    return readers | {old: readers[new] for old, new in _OLD_NAMES.items() if new in readers}


def _epoch_in(data: Mapping[str, Any]) -> Any:
    return _adapter(EpochReported).validator.validate_python({**data, "checkpoint": checkpoint_in(data)})


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # Any: one of the closed set of record types
    return TypeAdapter(kind)


# ------------------------------------------------------------------------------------------ lines


def _line(data: Mapping[str, Any]) -> bytes:
    body = json.dumps(data)[:-1].encode()
    return b"%s%s\n" % (body, _CRC % crc_of(body))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the whole lines of a journal with their numbers, one at a time: it may be large."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line[-1:] != b"\n":
                    _check_torn(path, number, line)
                    return
                yield number, line[:-1]
    except OSError as error:
        raise JournalError(str(path), 0, f"cannot be read: {error.strerror}") from error


def _survey(path: Path) -> tuple[int, bytes]:
    """Return how many whole lines a journal has, if there is one, and its torn last line."""
    lines, torn = 0, b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            lines, torn = (lines + 1, b"") if line[-1:] == b"\n" else (lines, line)
    return lines, torn


def _check(line: bytes, *, must_be_sealed: bool) -> bool:
    """Return whether a line has a check value, which is right.

    Raises:
        ValueError: If it is wrong or missing.
    """
    seal = line[-_CRC_BYTES:]
    found = _CRC % crc_of(line[:-_CRC_BYTES])
    if seal == found:
        return True
    if _CRC_FORM.fullmatch(seal):
        words = f"its check value is {seal[_CRC_AT].decode()}, what is there has {found[_CRC_AT].decode()}"
        raise ValueError(words)
    if must_be_sealed:
        raise ValueError("it has no check value")
    return False


def _check_torn(path: Path, number: int, line: bytes) -> None:
    """Refuse a last line that is whole but for its line break: it was not torn, but damaged later."""
    with contextlib.suppress(ValueError):
        if _check(line[:-1], must_be_sealed=True):
            raise _damaged(path, number, f"{line[-1:]!r} where a line break belongs")


def _json(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line)  # halves of surrogate pairs, which Python's strings may have


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _out_of_order(found: object, expected: int) -> str:
    is_again = isinstance(found, int) and found < expected
    why = "it was written twice, or two controllers wrote" if is_again else "lines are missing"
    return f"record {found} where {expected} belongs: {why}"


def _damaged(path: Path, line: int, found: str) -> JournalError:
    return JournalError(str(path), line, f"{found}; {_ADVICE}")


def _check_header(path: Path, first: bytes, study: str | None = None) -> dict[str, str]:
    try:
        is_sealed = _check(first, must_be_sealed=False)
        header = _json(first)
        _check_format(path, header, is_sealed=is_sealed)
    except (ValueError, AttributeError) as error:
        raise JournalError(str(path), 1, f"not a journal ({error})") from error
    if study is not None and header.get("study") != study:
        raise JournalError(str(path), 1, f"belongs to study {header.get('study')!r}, not {study!r}")
    return {"version": "", **header}


def _check_format(path: Path, header: Mapping[str, Any], *, is_sealed: bool) -> None:
    if header.get("format") != FORMAT:
        raise JournalError(str(path), 1, f"format {header.get('format')!r}, expected {FORMAT}")
    if "version" in header and not is_sealed:
        raise ValueError("it has no check value")
