"""A run directory: where a study keeps what was declared, what happened, and its checkpoints.

::

    study.yaml  sites/<site>.yaml      what was declared, resolved: enough to resume elsewhere
    journal.jsonl                      what happened and what was decided
    first_method.json                  the method that it began with, if that was changed since
    origin.json                        where the study's functions are
    code/                              a copy of them, if the study says `code: pinned`
    mark                               a string that no other run has
    told/                              what the user has told the search while it stood or ran
    controllers/                       who has run the study, and who does now
    trials/<id>/attempt-<n>/           orders, epochs, checkpoints and reports of each attempt
    submitted/                         the jobs of its controller, if it was submitted
    stages/<stage>/                    where each stage stands; results and files of its calls
    globus.log                         what the SDK of Globus Compute warns of
    report.html                        the page that `run` and `report` write
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from parsl_rasda.atomic_files import create_file
from parsl_rasda.errors import RunCancelledError, RunDirectoryError
from parsl_rasda.orchestration import controllers
from parsl_rasda.private_files import close_folder
from parsl_rasda.types import JobId

_REPORTS = (  # of a search
    *("results.csv", "metrics.csv", "best.json", "summary.txt", "report.html"),
    *("tensorboard", "wandb", "tracking.db", "mlflow"),
)
_PLAIN_ASCII = re.compile(r"[A-Za-z0-9_./+@%:,=~#-]")

_LOOK_S = 2.0
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
    def requests(self) -> Path:
        """Folder of what the user has told the search."""
        return self.path / "told"

    @property
    def first_method(self) -> Path:
        """The `scheduler` block that the search began with, if it has been changed since."""
        return self.path / "first_method.json"

    @property
    def stages(self) -> Path:
        """Folder of the stages: their records and the results of their calls."""
        return self.path / "stages"

    @property
    def last_job(self) -> Path:
        """The last job of its controller, if it was submitted to a batch system."""
        return self.path / "submitted" / "job.json"

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
        # The journal last: till then it is here.
        for name in ("trials", "mark", "first_method.json", "told", *_REPORTS, "journal.jsonl"):
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        return aside

    def attempt(self, job: JobId, base: Path | None = None) -> Path:
        """Return the private directory of one attempt, below ``base`` if the site has its own."""
        return (base or self.path) / "trials" / job.trial / f"attempt-{job.attempt}"

    @property
    def controller(self) -> str | None:
        """Who runs the study now, in words; None if nobody does."""
        last = controllers.last_claim(self.path)
        return last.holder if last else None

    @property
    def is_told_to_end(self) -> bool:
        """Whether its last controller was asked to end (`cancel`)."""
        last = controllers.last_claim(self.path)
        return last is not None and last.is_told_to_end

    def tell_to_end(self) -> None:
        """Ask the controller to save and to end, on whatever machine it is; one that comes later is not."""
        last = controllers.last_claim(self.path)
        if last is not None:
            last.tell_to_end()

    def await_end(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Return when nobody runs the study: its controller has ended, or has been silent for long.

        Raises:
            RunCancelledError: If that was told to end meanwhile (`cancel`), which goes for who waits, too.
        """
        last = controllers.last_claim(self.path)
        was_told = last is not None and last.is_told_to_end
        while last is not None and last.holder is not None:
            sleep(_LOOK_S)
            if last.is_told_to_end and not was_told:
                raise RunCancelledError(str(self.path))
            last = controllers.last_claim(self.path)

    @contextlib.contextmanager
    def controlled(self) -> Iterator[None]:
        """Be the only controller of this directory while the block lasts.

        Raises:
            RunDirectoryError: If another controller is alive.
        """
        with self._held():
            self._close_to_others()
            with controllers.claim(self.path).renewed():
                yield

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
        last = controllers.last_claim(self.path)
        if last is None or not last.is_mine:
            found = f"has been taken over by {(last and last.holder) or 'another controller'}"
            raise RunDirectoryError(str(self.path), found, "This one ends without writing anything.")


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
