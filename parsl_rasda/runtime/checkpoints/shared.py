"""Copies of checkpoints at a URL that all sites reach, so that a trial can resume on another site.

A checkpoint is written to the site's disk first. A thread copies the newest one during training; older
ones that still wait are skipped. ``header.json`` is copied last: a copy that has it is whole, and is
reported only then. A folder belongs to one attempt, so a stale attempt overwrites nothing.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsl_rasda.checkpoint_files import HEADER
from parsl_rasda.confined import confined
from parsl_rasda.errors import DamagedCheckpointError, RasdaError
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.runtime.checkpoints.retention import superseded
from parsl_rasda.runtime.checkpoints.seal import check_files

TRIES = 5
TRIES_OF_DAMAGED = 2  # the damage may have come on the way
FIRST_PAUSE_S = 0.5  # doubled after each try


class StoreError(RasdaError):
    """The store of shared checkpoints could not be read or written; a retry may help."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(url, cause)
        self.url, self.cause = url, cause

    def __str__(self) -> str:
        return f"The shared checkpoint {self.url} could not be copied: {self.cause}"


class CopyGoneError(StoreError):
    """There is no whole checkpoint at the URL, or only a damaged one; a retry does not help."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A checkpoint to copy.

    Attributes:
        epoch: Epochs done in it.
    """

    path: Path
    epoch: int


class SharedCheckpoints:
    """Copies the checkpoints of one attempt, the newest first."""

    def __init__(
        self,
        url: str,
        superseded: Callable[[Sequence[str]], int] = lambda places: superseded(places, (), None),
        spared: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """Prepare to copy; fsspec is imported with the first copy.

        Args:
            url: The attempt's folder, in a form that fsspec accepts.
            superseded: Given URLs of copies, oldest first, returns how many of them may be removed.
            spared: Returns epochs whose copies stay all the same.
        """
        self._url, self._superseded, self._spared = url.rstrip("/"), superseded, spared
        self._changed = threading.Condition()
        self._next: Copy | None = None
        self._at_work: Copy | None = None
        self._error: StoreError | None = None
        self._whole: list[Copy] = []
        self._thread: threading.Thread | None = None

    @property
    def newest(self) -> Checkpoint | None:
        """The newest whole copy; None without a copy."""
        with self._changed:
            newest = self._whole[-1] if self._whole else None
            return Checkpoint(self._url_of(newest), newest.epoch) if newest else None

    def add(self, path: Path, epoch: int) -> None:
        """Have a checkpoint copied, instead of one that still waits."""
        with self._changed:
            self._next = Copy(path, epoch)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shared-checkpoints", daemon=True)
            self._thread.start()

    def needs(self, path: Path) -> bool:
        """Return whether a directory must stay because it is, or will be, copied."""
        with self._changed:
            return path in {copy.path for copy in (self._next, self._at_work) if copy}

    def finish(self, patience_s: float | None = None) -> None:
        """Wait until the last checkpoint has been copied.

        Raises:
            StoreError: If it could not be copied, or not in time.
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
            _retry(url, lambda: store(copy.path, url))
        except StoreError as error:
            return error
        with self._changed:
            self._whole.append(copy)
            count = self._superseded([self._url_of(copy) for copy in self._whole])
            spared = self._spared()
            old = [copy for copy in self._whole[:count] if copy.epoch not in spared]
            self._whole = [copy for copy in self._whole if copy not in old]
        for gone in old:
            remove(self._url_of(gone))
        return None

    def _url_of(self, copy: Copy) -> str:
        return f"{self._url}/{copy.path.name}"


def is_url(place: str) -> bool:
    """Return whether a string is a URL, and not a path."""
    return "://" in place


def store(path: Path, url: str) -> None:
    """Copy a checkpoint to a URL, its header last."""
    system, root = _file_system(url)
    files = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.name == HEADER)
    for file in files:
        target = f"{root}/{file.relative_to(path).as_posix()}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), target)


def fetch(url: str, path: Path) -> None:
    """Copy a checkpoint from a URL to a directory, whole or not at all.

    Raises:
        CopyGoneError: If there is no whole checkpoint at the URL, or only a damaged one.
        StoreError: If it cannot be read.
    """
    part = path.with_name(path.name + ".tmp")

    def copy() -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        system, root = _file_system(url)
        for source in system.find(root):
            target = _target(part, source, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(source, str(target))
        if not (part / HEADER).exists():
            raise FileNotFoundError(f"no {HEADER} there")
        check_files(part)

    _retry(url, copy)
    part.rename(path)


def _target(folder: Path, source: str, root: str) -> Path:
    """Return where a file of a copy goes; a store may hold objects of any name.

    Raises:
        ValueError: If it would lead out of the folder that it is copied to.
    """
    if not source.startswith(f"{root}/"):
        raise ValueError(f"{source!r} leads out of {root}")
    return confined(folder, source.removeprefix(f"{root}/"))


def _retry(url: str, copy: Any) -> None:
    """Copy, and try again a few times: networks and stores fail for moments."""
    for attempt in range(1, TRIES + 1):
        try:
            copy()
        except Exception as error:  # each file system of fsspec raises its own errors
            cause = f"{type(error).__name__}: {error}"
            is_damaged = isinstance(error, DamagedCheckpointError) and attempt >= TRIES_OF_DAMAGED
            if isinstance(error, FileNotFoundError) or is_damaged:
                raise CopyGoneError(url, cause) from error
            if attempt == TRIES or isinstance(error, ImportError | ValueError):
                raise StoreError(url, cause) from error
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        else:
            return


def remove(url: str) -> None:
    """Remove a folder and all in it."""
    try:
        system, root = _file_system(url)
        system.rm(root, recursive=True)
    except Exception:  # noqa: BLE001 - what is left only takes up space
        return


def _file_system(url: str) -> tuple[Any, str]:  # fsspec is untyped
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url)
    return system, root.rstrip("/")
