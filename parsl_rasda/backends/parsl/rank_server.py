"""The fork server of a local pilot's ranks, which starts before the pilot: torch loads more slowly than that.

It is the server that the ranks would start (`runtime.process.forkserver`), because such a pilot has this
process's environment. It has the mark of the run, and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping

from parsl_rasda.agent.orphan_reaper import RUN_VARIABLE
from parsl_rasda.runtime.process.forkserver import keeper

_LISTENS_WITHIN_S = 10.0


class RankServer:
    """Sees to the fork server of this machine. All methods belong to one thread at a time."""

    def __init__(self, ranks: Mapping[str, str], mark: str) -> None:
        """Prepare; nothing is started yet.

        Args:
            ranks: Variables of the ranks, beside this environment's.
            mark: Of the run.
        """
        self._environment = {**ranks, RUN_VARIABLE: mark}
        self._keeper: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start it unless it runs; return at once."""
        self.close()
        with contextlib.suppress(OSError):  # then the first rank starts one
            self._keeper = subprocess.Popen(
                (sys.executable, "-S", "-E", "-s", keeper.__file__, "start"),
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # if it cannot, the first rank says so in its log
            )

    def close(self) -> None:
        """Wait until whoever starts it has ended. The server ends when the processes of the run are ended."""
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(_LISTENS_WITHIN_S)
            self._keeper = None
