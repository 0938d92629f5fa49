"""Open shards: few at a time, opened when needed, and never shared by a process and its fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from parsl_rasda.data.formats import OpenShard, format_of

MOST_OPEN: Final = 32


class OpenFiles:
    """The open shards, the least recently used first.

    There is one reader at a time. This costs nothing, because HDF5 itself has one lock for all files.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._shards: dict[str, OpenShard] = {}
        self._lock = threading.Lock()
        # A fork waits for the end of a read. The child closes the files that its parent has open.
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._start_afresh,
        )

    def __len__(self) -> int:
        return len(self._shards)

    @contextmanager
    def opened(self, path: str) -> Iterator[OpenShard]:
        """Give a shard that is open at least until the end of the ``with``.

        Raises:
            DataError: If the file is missing, truncated or of another format.
        """
        with self._lock:
            shard = self._shards.pop(path, None)
            if shard is None:
                while len(self._shards) >= self._most:
                    self._shards.pop(next(iter(self._shards))).close()
                shard = format_of(path).open(path)
            self._shards[path] = shard
            yield shard

    def close(self) -> None:
        """Close all shards."""
        with self._lock:
            self._close()

    def _start_afresh(self) -> None:
        self._close()
        self._lock.release()

    def _close(self) -> None:
        while self._shards:
            self._shards.popitem()[1].close()


OPEN_FILES: Final = OpenFiles(MOST_OPEN)
