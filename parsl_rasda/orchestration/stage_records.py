"""What became of each stage: its record and the results of its calls, in a folder of its own.

::

    stages/<stage>/stage.json          where it stands, and why it failed
    stages/<stage>/<call>.json         what a call returned; stands as long as its key does
    stages/<stage>/<call>/             files of the call

A call is known by its key; its name is that of its folder, and stays when others come before it.
A record is that of the present run: it goes when the stage runs again, results stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.types import StageState


@dataclass(frozen=True, slots=True)
class StageRecord:
    """Where a stage stands.

    Attributes:
        at: Since when [s].
        calls: Its calls and their keys, once they are known.
        cause: Why it failed or could not run; empty if it did.
        is_curable: Whether `resume` may help; not if the study itself is at fault.
        result: What it has returned, as later stages receive it; a search's is in its journal.
    """

    state: StageState = StageState.WAITING
    at: float = 0.0
    calls: Mapping[str, str] = field(default_factory=dict)
    cause: str = ""
    is_curable: bool = True
    result: Any = None  # JSON, as a user's function returned it


def read_record(folder: Path) -> StageRecord:
    """Return the record of a stage; without one, or with half of one, it has not begun."""
    try:
        found = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        return StageRecord(**{**found, "state": StageState(found["state"])})
    except (OSError, ValueError, KeyError, TypeError):
        return StageRecord()


def write_record(folder: Path, record: StageRecord) -> None:
    """Write the record of a stage down."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "stage.json", json.dumps(asdict(record)))


def forget_record(folder: Path) -> None:
    """Remove the record of a stage: it waits to run again."""
    (folder / "stage.json").unlink(missing_ok=True)


def kept_result(folder: Path, call: str, key: str) -> dict[str, Any] | None:
    """Return what a call returned (``result``, ``seconds``), or None if that does not stand.

    It stands while its key does, and the files of the call that it names are there.
    """
    found = kept_call(folder, call)
    if found is None or found.get("key") != key:
        return None
    own = f"{folder / call}/"
    return found if all(Path(t).exists() for t in _texts(found.get("result")) if t.startswith(own)) else None


def kept_call(folder: Path, call: str) -> dict[str, Any] | None:
    """Return what is kept of a call, whatever it was called with."""
    try:
        found = json.loads((folder / f"{call}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "key" in found else None


def kept_names(folder: Path) -> dict[str, str]:
    """Return the names of the calls that are kept, by their keys."""
    names = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("[0-9]*.json"))
    found = ((name, kept_call(folder, name)) for name in names)
    return {kept["key"]: name for name, kept in found if kept is not None}


def keep_result(folder: Path, call: str, key: str, found: Mapping[str, Any]) -> None:
    """Keep what a call returned."""
    file = folder / f"{call}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps({"key": key, **found}))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for inner in value.values():
                yield from _texts(inner)
        case list():
            for inner in value:
                yield from _texts(inner)
        case _:
            pass
