"""The study's journal: every event and what followed from it, synced before it is acted on.

One JSON line a record: ``{"n": 7, "event": {...}, "instructions": [...]}``; the first line names the
format and the study. A torn last line was never acted on and is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from pydantic import TypeAdapter, ValidationError

from parsl_rasda.atomic_files import sync_folder
from parsl_rasda.errors import JournalError
from parsl_rasda.orchestration.events import ContinueJob, EpochReported, Event, Instruction
from parsl_rasda.protocol import checkpoint_fields, checkpoint_in

FORMAT = 1
# Names under which earlier versions wrote records; they are read for ever.
_OLD_NAMES = {"SiteTroubled": "SiteDegraded", "TimePassed": "TimerFired", "ConcludeTrial": "TrialFinished"}
# Fields that came later, and are written only where they say something.
_ADDED: dict[Any, str] = {EpochReported: "samples", ContinueJob: "batches"}  # Any: types of records


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
        header = _line({"format": FORMAT, "study": study})
        found = path.read_bytes() if path.exists() else b""
        fresh = len(found) < len(header) and header.startswith(found)  # missing, or torn in its first line
        if not fresh:
            _check_header(path, found.partition(b"\n")[0], study)
        _cut_torn_line(path, found)
        self._count = max(0, found.count(b"\n") - 1)
        self._file = path.open("ab", buffering=0)  # what a full disk refused must not come again at `close`
        if fresh:
            try:
                self._write(header)
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
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise JournalError(str(path), 0, f"cannot be read: {error.strerror}") from error
    whole = lines[:-1]  # what follows the last line break is torn, or empty
    for number, line in enumerate(whole, start=1):
        try:
            data = json.loads(line)
            if number == 1:
                _check_format(path, data)
                continue
            count = data["n"]
            record = Record(
                decode(data["event"], Event), tuple(decode(i, Instruction) for i in data["instructions"])
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JournalError(str(path), number, f"not a record of a journal ({error})") from error
        if count != number - 2:  # lines count from 1, and the first is the header
            found = f"record {count} where {number - 2} belongs: two controllers wrote, or a line is missing"
            raise JournalError(str(path), number, found)
        yield record


def encode(record: Event | Instruction) -> dict[str, Any]:
    """Return a record as plain JSON with its type's name."""
    name = type(record).__name__
    kind: Any = type(record)  # Any: mypy sees a union of unhashable types
    data = {"type": name, **_adapter(kind).dump_python(record, mode="json")}
    if isinstance(record, EpochReported):
        data |= checkpoint_fields(record.checkpoint, record.epoch)
    added = _ADDED.get(kind)
    if added is not None and data[added] is None:
        del data[added]
    return data


def decode(data: Mapping[str, Any], union: Any) -> Any:  # Any: one of the union's members
    """Return the record that `encode` wrote, if it is a member of the union."""
    kinds = {kind.__name__: kind for kind in get_args(union)}
    kind = kinds[_OLD_NAMES.get(data["type"], data["type"])]
    values = {k: v for k, v in data.items() if k != "type"}
    if kind is EpochReported:
        values["checkpoint"] = checkpoint_in(values)
        values.pop("checkpoint_epoch", None)
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(str(error)) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # Any: one of the closed set of record types
    return TypeAdapter(kind)


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _check_header(path: Path, first: bytes, study: str) -> None:
    try:
        header = json.loads(first)
        _check_format(path, header)
    except (ValueError, AttributeError) as error:
        raise JournalError(str(path), 1, "not a journal") from error
    if header.get("study") != study:
        raise JournalError(str(path), 1, f"belongs to study {header.get('study')!r}, not {study!r}")


def _check_format(path: Path, header: Mapping[str, Any]) -> None:
    if header.get("format") != FORMAT:
        raise JournalError(str(path), 1, f"format {header.get('format')!r}, expected {FORMAT}")


def _cut_torn_line(path: Path, data: bytes) -> None:
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
