"""What the controllers of one run remember of a Globus Compute site, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from parsl_rasda.atomic_files import replace_file


class GlobusRecord:
    """A file in the run directory.

    Attributes:
        group: The task group of the run on this site.
    """

    def __init__(self, directory: Path) -> None:
        """Read the record of earlier controllers, or begin one."""
        self._file = directory / "globus.json"
        directory.mkdir(parents=True, exist_ok=True)
        found = self._read()
        try:
            self.group = UUID(found["task_group"])
        except (KeyError, ValueError):
            self.group = uuid4()
            self._write({"task_group": str(self.group)})

    def next_term(self) -> int:
        """Return a number for a handshake, higher than any before."""
        found = self._read()
        term = int(found.get("term", 0)) + 1
        self._write({**found, "term": term})
        return term

    def begun(self, call: str) -> int:
        """Return how often a call has ended; it is under that number that it goes on or begins."""
        return int(self._read().get("calls", {}).get(call, 0))

    def conclude(self, call: str, begun: int) -> None:
        """Let a call begin afresh next time."""
        found = self._read()
        self._write({**found, "calls": {**found.get("calls", {}), call: begun + 1}})

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, record: dict[str, Any]) -> None:
        replace_file(self._file, json.dumps(record))
