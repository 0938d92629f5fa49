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
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, get_args

from google_crc32c import value as crc_of
from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema, from_json

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
    EpochReported: ("samples", "noise", "steps", "includes_startup"),
    ContinueJob: ("batches",),
}
_CRC = b', "crc": "%08x"}'
_CRC_FORM = re.compile(rb', "crc": "[0-9a-f]{8}"\}')
_CRC_BYTES, _CRC_AT = 20, slice(10, 18)
_ADVICE = "it was left as it is: put a sound copy of the file in its place, then resume"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
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
    reader, is_sealed = _adapter(_Line).validator, False
    for number, line in _lines(path):
        try:
            is_sealed = _check(line, must_be_sealed=is_sealed)
            if number == 1:
                _check_format(path, _json(line), is_sealed=is_sealed)
                continue
            found = _record_in(line, reader)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, number, f"not a record of a journal ({_words(error)})") from error
        if found.n != number - 2:  # lines count from 1, and the first is the header
            raise _damaged(path, number, _out_of_order(found.n, number - 2))
        yield Record(found.event, found.instructions)


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
    return _adapter(Annotated[union, _ByType()]).validator.validate_python(data)


class _ByType:
    """Lets pydantic make a record of its JSON by the name of its type; other keys are passed over."""

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = {
            kind.__name__: _epoch_schema(handler) if kind is EpochReported else handler.generate_schema(kind)
            for kind in get_args(union)
        }
        old_names = {old: kinds[new] for old, new in _OLD_NAMES.items() if new in kinds}
        return core_schema.tagged_union_schema(kinds | old_names, "type")


def _epoch_schema(handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return the schema of an epoch, whose checkpoint is two fields in JSON: see `Checkpoint`."""
    epoch: Any = handler.resolve_ref_schema(handler.generate_schema(EpochReported))  # Any: a dataclass's
    fields = {field["name"]: field for field in epoch["schema"]["fields"]}
    for name, schema in (
        ("checkpoint", core_schema.str_schema()),
        ("checkpoint_epoch", core_schema.int_schema()),
    ):
        optional = core_schema.with_default_schema(core_schema.nullable_schema(schema), default=None)
        fields[name] = core_schema.dataclass_field(name, optional)
    args = core_schema.dataclass_args_schema(EpochReported.__name__, [*fields.values()])
    made = core_schema.no_info_after_validator_function(_with_checkpoint, args)
    return core_schema.dataclass_schema(EpochReported, made, epoch["fields"], slots=True)


def _with_checkpoint(found: tuple[dict[str, Any], Any]) -> tuple[dict[str, Any], Any]:
    values, _ = found
    values["checkpoint"] = checkpoint_in(values)
    del values["checkpoint_epoch"]
    return found


@dataclass(slots=True)
class _Line:
    """What is read of a line that is not the first."""

    n: Any  # compared with where it stands
    event: Annotated[Event, _ByType()]
    instructions: tuple[Annotated[Instruction, _ByType()], ...]


def _record_in(line: bytes, reader: Any) -> _Line:  # Any: the validator of `_Line`
    found: _Line
    try:
        found = reader.validate_json(line)  # without a detour by Python's dictionaries
    except ValidationError:
        # Halves of surrogate pairs, which Python's strings may have.
        found = reader.validate_python(json.loads(line))
    return found


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
