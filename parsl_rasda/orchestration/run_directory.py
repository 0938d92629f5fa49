"""A run directory: where a study keeps what was declared, what happened, and its checkpoints.

::

    study.yaml  sites/<site>.yaml      what was declared, resolved: enough to resume elsewhere
    journal.jsonl                      what happened and what was decided
    origin.json                        where the study's functions are
    code/                              a copy of them, if the study says `code: pinned`
    mark                               a string that no other run has
    controller.json                    who runs the study now
    trials/<id>/attempt-<n>/           orders, epochs, checkpoints and reports of each attempt
    stages/<stage>/                    where each stage stands; results and files of its calls
    globus.log                         what the SDK of Globus Compute warns of
    report.html                        the page that `run` and `report` write
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parsl_rasda.atomic_files import create_file
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.private_files import close_folder
from parsl_rasda.processes import identify
from parsl_rasda.types import JobId

_REPORTS = ("results.csv", "best.json", "summary.txt", "report.html")  # of a search
_PLAIN_ASCII = re.compile(r"[A-Za-z0-9_./+@%:,=~#-]")
_SILENCE_S = 120.0  # a controller on another host that has been silent for so long is dead

_held: set[tuple[int, Path]] = set()  # by threads of a process: on disk, they all have one identity
_holding = threading.Lock()


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of a run; creating one creates nothing."""

    path: Path

    @property
    def study_file(self) -> Path:
        """The resolved study."""
        return self.path / "study.yaml"

    @property
    def origin(self) -> Path:
        """Where the study's functions are."""
        return self.path / "origin.json"

    @property
    def code(self) -> Path:
        """A copy of the study's modules, if its code is pinned."""
        return self.path / "code"

    @property
    def sites(self) -> Path:
        """Folder of the resolved site files."""
        return self.path / "sites"

    @property
    def journal(self) -> Path:
        """The journal of the search."""
        return self.path / "journal.jsonl"

    @property
    def stages(self) -> Path:
        """Folder of the stages: their records and the results of their calls."""
        return self.path / "stages"

    @property
    def mark(self) -> str:
        """A string that no other run has, the same whenever this one is resumed."""
        file = self.path / "mark"
        if not file.exists():
            create_file(file, uuid.uuid4().hex[:12])
        return file.read_text(encoding="utf-8")

    @property
    def searches_before(self) -> int:
        """How many searches were set aside here."""
        return len(list((self.path / "before").glob("*")))

    def set_aside(self) -> Path | None:
        """Put the search that was begun here into a folder of its own, below ``before``; return that.

        Nothing is lost: its journal and its trials stay readable there.
        """
        if not self.journal.exists():
            return None
        aside = self.path / "before" / str(self.searches_before + 1)
        aside.mkdir(parents=True)
        for name in ("trials", "mark", *_REPORTS, "journal.jsonl"):  # the journal last: till then it is here
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        return aside

    def attempt(self, job: JobId, base: Path | None = None) -> Path:
        """Return the private directory of one attempt, below ``base`` if the site has its own."""
        return (base or self.path) / "trials" / job.trial / f"attempt-{job.attempt}"

    @property
    def controller(self) -> str | None:
        """Who runs the study now, in words; None if nobody does."""
        file = self._claim
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            host, pid, start = found["host"], found["pid"], found["start"]
            age_s = time.time() - file.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            return None
        alive = _start_of(pid) == start if host == platform.node() else age_s < _SILENCE_S
        return f"process {pid} on {host}" if alive else None

    @property
    def _claim(self) -> Path:
        return self.path / "controller.json"

    @contextlib.contextmanager
    def controlled(self) -> Iterator[None]:
        """Be the only controller of this directory while the block lasts.

        Raises:
            RunDirectoryError: If another controller is alive.
        """
        with self._held():
            self._close_to_others()
            self._become_controller()
            try:
                yield
            finally:
                if self._is_mine:
                    self._claim.unlink(missing_ok=True)

    @property
    def _is_in_use(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def _close_to_others(self) -> None:
        """Make the directory; one that holds something else keeps its rights, for others may need that."""
        if self.origin.exists() or self.journal.exists() or not self._is_in_use:
            close_folder(self.path)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other threads of this process out."""
        mine = (os.getpid(), self.path.resolve())
        with _holding:
            if mine in _held:
                found = "is being run by another thread of this process"
                raise RunDirectoryError(str(self.path), found, "Wait for it, or choose another directory.")
            _held.add(mine)
        try:
            yield
        finally:
            with _holding:
                _held.discard(mine)

    def verify(self) -> None:
        """Make sure that this process still is the controller.

        Raises:
            RunDirectoryError: If another one has taken over, because this one was silent for too long.
        """
        if not self._is_mine:
            found = f"has been taken over by {self.controller or 'another controller'}"
            raise RunDirectoryError(str(self.path), found, "This one ends without writing anything.")

    @property
    def _is_mine(self) -> bool:
        try:
            found = json.loads(self._claim.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == _identity())

    def _become_controller(self) -> None:
        """Create the claim, never over that of a controller that lives."""
        while not create_file(self._claim, json.dumps(_identity())):
            other = self.controller
            if other is not None:
                raise RunDirectoryError(
                    str(self.path), f"is being run by {other}", "Wait for it, or end it first."
                )
            self._claim.unlink(missing_ok=True)

    def beat(self) -> None:
        """Show controllers on other hosts that this one lives.

        Raises:
            RunDirectoryError: If another one has taken over.
        """
        self.verify()
        with contextlib.suppress(OSError):
            os.utime(self._claim)


def check_folder(folder: Path) -> None:
    """Refuse a folder that Parsl's command lines, which quote nothing, would tear apart: pilots never come.

    Raises:
        RunDirectoryError: If its path, links followed, has a blank or a character special to shells.
    """
    path = str(folder.resolve())
    for character in path:
        if not (_PLAIN_ASCII.match(character) or (not character.isascii() and character.isalpha())):
            found = f"has {character!r} in its path, with which Parsl starts no pilot"
            raise RunDirectoryError(
                path, found, "Choose one of letters, digits and _ . / + @ % : , = ~ # - only."
            )


def _identity() -> dict[str, str | int | None]:
    return {"host": platform.node(), "pid": os.getpid(), "start": _start_of(os.getpid())}


def _start_of(pid: int) -> str | None:
    """Return when a process of this host started, as `controller.json` has it, or None if it is gone."""
    process = identify(pid)
    return None if process is None else str(process.start)
