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
from functools import cache, reduce
from importlib.metadata import version
from itertools import islice
from operator import or_
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from google_crc32c import value as crc_of
from msgspec import DecodeError, Struct, convert, to_builtins
from msgspec.json import Decoder

from parsl_rasda.atomic_files import sync_folder
from parsl_rasda.errors import JournalError
from parsl_rasda.orchestration.events import (
    ContinueJob,
    EpochReported,
    Event,
    Instruction,
    JobEnded,
    StudyStarted,
    TrialProposed,
)
from parsl_rasda.protocol import Steps, checkpoint_fields, checkpoint_of
from parsl_rasda.types import GradientNoise, JobId

FORMAT = 1
VERSION = version("parsl_rasda")
# Names under which earlier versions wrote records; they are read for ever.
_OLD_NAMES = {"SiteTroubled": "SiteDegraded", "TimePassed": "TimerFired", "ConcludeTrial": "TrialFinished"}
# Fields that came later, and are written only where they say something.
_ADDED: dict[Any, tuple[str, ...]] = {  # Any: types of records
    EpochReported: ("samples", "noise", "steps", "includes_startup", "exact", "devices", "test"),
    ContinueJob: ("batches",),
    StudyStarted: ("budget", "method", "later", "confirm"),
    JobEnded: ("energy_j",),
    TrialProposed: ("told",),
}
_CRC = b', "crc": "%08x"}'
_CRC_FORM = re.compile(rb', "crc": "[0-9a-f]{8}"\}')
_CRC_BYTES, _CRC_AT = 20, slice(10, 18)
_ADVICE = "it was left as it is: put a sound copy of the file in its place, then resume"

logger = logging.getLogger(__name__)


class Record(Struct, frozen=True, gc=False):
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
    decoder, is_sealed = _decoder(), False
    for number, line in _lines(path):
        try:
            is_sealed = _check(line, must_be_sealed=is_sealed)
            if number == 1:
                _check_format(path, json.loads(line), is_sealed=is_sealed)
                continue
            found = _line_in(line, decoder)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, number, f"not a record of a journal ({error})") from error
        if found.n != number - 2:  # lines count from 1, and the first is the header
            raise _damaged(path, number, _out_of_order(found.n, number - 2))
        event = found.event
        yield Record(event.reported() if type(event) is _Epoch else event, found.instructions)


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
    plain: dict[str, Any] = to_builtins(record, enc_hook=_plain)
    kind: Any = type(record)  # Any: one of the closed set of record types
    if isinstance(record, EpochReported):
        plain |= checkpoint_fields(record.checkpoint, record.epoch)
        kind = _Epoch
    data: dict[str, Any] = to_builtins(convert(plain, kind, strict=False))  # whole numbers may be floats
    for added in _ADDED.get(type(record), ()):
        if data[added] in (None, (), "", {}) or data[added] is False:
            del data[added]
    return data


def decode(data: Mapping[str, Any], union: Any) -> Any:  # Any: one of the union's members
    """Return the record that `encode` wrote, if it is a member of the union."""
    found = convert(_renamed(data), _written(union), strict=False)
    return found.reported() if isinstance(found, _Epoch) else found


class _Epoch(Struct, frozen=True, tag=EpochReported.__name__, gc=False):
    """How an `EpochReported` is written: its checkpoint is two fields in JSON, see `Checkpoint`."""

    at: float
    job: JobId
    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    checkpoint: str | None = None
    slots: tuple[str, ...] = ()
    samples: int | None = None
    noise: GradientNoise | None = None
    steps: Steps = ()
    includes_startup: bool = False
    exact: str = ""
    devices: tuple[str, ...] = ()
    test: float | None = None
    checkpoint_epoch: int | None = None

    def reported(self) -> EpochReported:
        """Return the event."""
        return EpochReported(
            self.at,
            self.job,
            self.epoch,
            self.metrics,
            self.seconds,
            checkpoint_of(self.checkpoint, self.checkpoint_epoch, self.epoch),
            self.slots,
            self.samples,
            self.noise,
            self.steps,
            self.includes_startup,
            self.exact,
            self.devices,
            self.test,
        )


@cache
def _written(union: Any) -> Any:  # Any: a union of record types
    """Return the union of the types by which records are written."""
    return reduce(or_, (_Epoch if kind is EpochReported else kind for kind in get_args(union)))


_WrittenEvent: Any = _written(Event)


class _Line(Struct, gc=False):
    """What is read of a line that is not the first."""

    n: int
    event: _WrittenEvent
    instructions: tuple[Instruction, ...]


@cache
def _decoder() -> Decoder[_Line]:
    return Decoder(_Line)


def _line_in(line: bytes, decoder: Decoder[_Line]) -> _Line:
    try:
        return decoder.decode(line)
    except DecodeError:
        # NaN and halves of surrogate pairs, which Python's JSON has, or names of earlier versions.
        data = json.loads(line)
        instructions = [_renamed(i) for i in data["instructions"]]
        whole = {**data, "event": _renamed(data["event"]), "instructions": instructions}
        return convert(whole, _Line, strict=False)


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of an earlier version with the name that it has now."""
    return {**data, "type": _OLD_NAMES.get(data["type"], data["type"])}


def _plain(value: object) -> object:
    """Return a number or a string that says it is one, as NumPy's floats are, for what it is."""
    for kind in (float, int, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


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


def _out_of_order(found: int, expected: int) -> str:
    why = "it was written twice, or two controllers wrote" if found < expected else "lines are missing"
    return f"record {found} where {expected} belongs: {why}"


def _damaged(path: Path, line: int, found: str) -> JournalError:
    return JournalError(str(path), line, f"{found}; {_ADVICE}")


def _check_header(path: Path, first: bytes, study: str | None = None) -> dict[str, str]:
    try:
        is_sealed = _check(first, must_be_sealed=False)
        header = json.loads(first)
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
