"""Removes the checkpoints that nobody will ask for any more, while the search goes on.

A thread removes them where this machine sees the disk, and at the URL of shared ones. On another disk the
next job there does it. What could not be removed, whatever the reason, only takes up space: that is logged,
once, and tried again when the run is resumed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from parsl_rasda.checkpoint_files import remove_attempts
from parsl_rasda.runtime.checkpoints.shared import remove
from parsl_rasda.study import SiteBase
from parsl_rasda.types import JobId, SiteName, TrialId

_PATIENCE_S = 60.0  # at the end of a search
_MOST_AT_ONCE = 1000  # trials whose checkpoints one job removes

logger = logging.getLogger(__name__)


class CheckpointCleaner:
    """Removes checkpoints of trials; use as a context manager."""

    def __init__(
        self,
        sites: Mapping[SiteName, SiteBase],
        folder_of: Callable[[TrialId, SiteName], Path],
        url_of: Callable[[TrialId], str | None],
    ) -> None:
        """Prepare to remove.

        Args:
            sites: Those of the search.
            folder_of: Returns the folder of a trial's attempts on a site.
            url_of: Returns the URL of its shared checkpoints, if they are shared.
        """
        self._near = [name for name, site in sites.items() if site.capabilities.sees_run_directory]
        self._far = {name: deque[JobId]() for name in sites if name not in self._near}
        self._folder_of, self._url_of = folder_of, url_of
        self._asked: queue.SimpleQueue[JobId | None] = queue.SimpleQueue()
        self._has_complained = False
        self._thread = threading.Thread(target=self._work, name="checkpoint-cleaner", daemon=True)

    def discard(self, last: JobId) -> None:
        """Have the checkpoints of a trial removed, up to its last attempt."""
        self._asked.put(last)
        for pending in self._far.values():
            pending.append(last)

    def for_job(self, site: SiteName) -> tuple[JobId, ...]:
        """Return the last attempts of the trials whose checkpoints the next job on a site is to remove."""
        pending = self._far.get(site, deque())
        return tuple(pending.popleft() for _ in range(min(len(pending), _MOST_AT_ONCE)))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for a while until all are removed; what is left then waits for a `resume`."""
        self._asked.put(None)
        self._thread.join(_PATIENCE_S if kind is None else 0.0)

    def _work(self) -> None:
        while (last := self._asked.get()) is not None:
            try:
                self._remove(last)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must cost no trial
                self._complain(last, error)

    def _remove(self, last: JobId) -> None:
        for folder in {self._folder_of(last.trial, site) for site in self._near}:
            error = remove_attempts(folder, last.attempt)
            if error is not None:
                self._complain(last, error)
        url = self._url_of(last.trial)
        for attempt in range(1, last.attempt + 1) if url is not None else ():
            remove(f"{url}/attempt-{attempt}")

    def _complain(self, last: JobId, error: Exception) -> None:
        level = logging.DEBUG if self._has_complained else logging.WARNING
        self._has_complained = True
        logger.log(level, "checkpoints of trial %s could not be removed: %s", last.trial, error)
