"""``python -m parsl_rasda.runtime ORDER.json``: one rank of one job, see `process.rank`."""

from __future__ import annotations

import sys

from parsl_rasda.runtime.process.rank import main
from parsl_rasda.user_modules import add_user_folders_of_parent

if __name__ == "__mp_main__":  # multiprocessing has started this process for a rank
    add_user_folders_of_parent()
if __name__ == "__main__":
    main(sys.argv[1:])
