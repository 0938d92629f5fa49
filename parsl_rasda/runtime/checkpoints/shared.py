"""Copies of checkpoints at a URL that all sites reach, so that a trial may go on somewhere else.

A checkpoint is written to the site's disk first. One thread copies the newest one while training goes
on; those that it overtakes are never copied. A copy is whole once its ``header.json`` is there, which
comes last, and nobody hears of it before. A folder belongs to one attempt, so a stale one overwrites
nothing.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from parsl_rasda.errors import RasdaError
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.runtime.checkpoints.checkpoint import HEADER
from parsl_rasda.runtime.checkpoints.retention import superseded

TRIES = 5
FIRST_PAUSE_S = 0.5  # doubled with each try


class StoreError(RasdaError):
    """The place where checkpoints are shared could not be read or written; another try may help."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(url, cause)
        self.url, self.cause = url, cause

    def __str__(self) -> str:
        return f"The shared checkpoint {self.url} could not be copied: {self.cause}"


class CopyGoneError(StoreError):
    """There is nothing at the URL, or nothing whole; no other try helps."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A checkpoint and how far it got.

    Attributes:
        epoch: Epochs done in it.
    """

    path: Path
    epoch: int


class SharedCheckpoints:
    """Copies one attempt's checkpoints, the newest first."""

    def __init__(
        self,
        url: str,
        superseded: Callable[[Sequence[str]], int] = lambda places: superseded(places, (), None),
    ) -> None:
        """Prepare; nothing is imported before the first copy.

        Args:
            url: Folder of the attempt, as fsspec knows it.
            superseded: Says how many of some copies may go, the oldest first.
        """
        self._url, self._superseded = url.rstrip("/"), superseded
        self._changed = threading.Condition()
        self._next: Copy | None = None
        self._at_work: Copy | None = None
        self._error: StoreError | None = None
        self._whole: list[Copy] = []
        self._thread: threading.Thread | None = None

    @property
    def newest(self) -> Checkpoint | None:
        """The newest whole copy, or None."""
        with self._changed:
            newest = self._whole[-1] if self._whole else None
            return Checkpoint(self._url_of(newest), newest.epoch) if newest else None

    def add(self, path: Path, epoch: int) -> None:
        """Let a checkpoint be copied, in place of one that waits."""
        with self._changed:
            self._next = Copy(path, epoch)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shared-checkpoints", daemon=True)
            self._thread.start()

    def needs(self, path: Path) -> bool:
        """Whether a directory must stay because it is being copied."""
        with self._changed:
            return path in {copy.path for copy in (self._next, self._at_work) if copy}

    def finish(self, patience_s: float | None = None) -> None:
        """Wait until the last checkpoint has been copied.

        Raises:
            StoreError: If it could not be, or not in time.
        """
        with self._changed:
            is_done = self._changed.wait_for(lambda: not (self._next or self._at_work), patience_s)
            if not is_done:
                raise StoreError(self._url, f"not done within {patience_s:.0f} s")
            if self._error is not None:
                raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                self._at_work, self._next = self._next, None
                copy = self._at_work
            if copy is None:
                continue
            error = self._copied(copy)
            with self._changed:
                self._at_work, self._error = None, error
                self._changed.notify_all()

    def _copied(self, copy: Copy) -> StoreError | None:
        url = self._url_of(copy)
        try:
            _patiently(url, lambda: store(copy.path, url))
        except StoreError as error:
            return error
        with self._changed:
            self._whole.append(copy)
            count = self._superseded([self._url_of(copy) for copy in self._whole])
            old = self._whole[:count]
            del self._whole[:count]
        for gone in old:
            _remove(self._url_of(gone))
        return None

    def _url_of(self, copy: Copy) -> str:
        return f"{self._url}/{copy.path.name}"


def is_url(place: str) -> bool:
    """Whether a place is a URL, and not a path."""
    return "://" in place


def store(path: Path, url: str) -> None:
    """Copy a checkpoint to a URL; its header comes last."""
    system, root = _file_system(url)
    files = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.name == HEADER)
    for file in files:
        target = f"{root}/{file.relative_to(path).as_posix()}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), target)


def fetch(url: str, path: Path) -> None:
    """Copy a checkpoint from a URL to a directory, whole or not at all.

    Raises:
        CopyGoneError: If it is not there any more.
        StoreError: If it cannot be read.
    """
    part = path.with_name(path.name + ".tmp")

    def copy() -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        system, root = _file_system(url)
        for source in system.find(root):
            target = part / PurePosixPath(source).relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(source, str(target))
        if not (part / HEADER).exists():
            raise FileNotFoundError(f"no {HEADER} there")

    _patiently(url, copy)
    part.rename(path)


def _patiently(url: str, copy: Any) -> None:
    """Try a few times: networks and stores have bad moments."""
    for attempt in range(1, TRIES + 1):
        try:
            copy()
        except Exception as error:  # every store of fsspec has errors of its own
            cause = f"{type(error).__name__}: {error}"
            if isinstance(error, FileNotFoundError):
                raise CopyGoneError(url, cause) from error
            if attempt == TRIES or isinstance(error, ImportError | ValueError):
                raise StoreError(url, cause) from error
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        else:
            return


def _remove(url: str) -> None:
    try:
        system, root = _file_system(url)
        system.rm(root, recursive=True)
    except Exception:  # noqa: BLE001  it only takes room
        return


def _file_system(url: str) -> tuple[Any, str]:  # fsspec is untyped
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url)
    return system, root.rstrip("/")
