"""`parsl-rasda`, which kills itself once the journal of its search has so many records.

Usage: dying_controller.py COUNT [--torn] WORDS...

It has not acted on the last one. With ``--torn`` it dies in the middle of the one after that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

from parsl_rasda.cli.main import main
from parsl_rasda.orchestration.journal import Journal, Record


def die_after(count: int, *, torn: bool) -> None:
    append = Journal.append

    def dying_append(self: Journal, records: Iterable[Record]) -> None:
        given = list(records)
        room = count - (self.path.read_bytes().count(b"\n") - 1)  # the first line is the header
        if room > len(given) - torn:
            append(self, given)
            return
        append(self, given[: max(0, room)])
        if torn:
            whole = self.path.stat().st_size
            append(self, given[max(0, room) :][:1])
            os.truncate(self.path, (whole + self.path.stat().st_size) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = dying_append  # type: ignore[method-assign]  # the only way to die between two records


if __name__ == "__main__":
    number, *words = sys.argv[1:]
    is_torn = words[0] == "--torn"
    sys.argv[1:] = words[is_torn:]
    die_after(int(number), torn=is_torn)
    main()
