"""``python -m parsl_rasda.runtime ORDER.json``: one rank of one job, see `process.rank`."""

from __future__ import annotations

import sys

from parsl_rasda.runtime.process.rank import main

if __name__ == "__main__":
    main(sys.argv[1:])
