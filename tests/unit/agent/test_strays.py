"""A worker is left as it was found: what a stage leaves without a mark goes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parsl_rasda.agent.orphan_reaper import RUN_VARIABLE
from parsl_rasda.processes import identify

# A worker that calls a stage; the stage leaves a daemon without an environment, and a marked helper.
WORKER = """
import os, subprocess, sys, time
from pathlib import Path
from parsl_rasda.agent.strays import ending_strays
folder = Path(sys.argv[1])
with ending_strays():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            tell = f"echo $$ > {folder}/daemon.new; mv {folder}/daemon.new {folder}/daemon"
            os.execve("/bin/sh", ["sh", "-c", f"{tell}; exec sleep 600 >/dev/null"], {})
        os._exit(0)
    os.wait()
    while not (folder / "daemon").exists():
        time.sleep(0.01)
    helper = subprocess.Popen(["sleep", "600"])
print(helper.poll(), flush=True)
helper.kill()
"""


@pytest.mark.parametrize("mark", ["m", ""])
def test_only_what_has_no_mark_is_ended_and_only_in_a_worker_of_ours(tmp_path: Path, mark: str) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin"}
    environment |= {RUN_VARIABLE: mark} if mark else {}
    done = subprocess.run(
        (sys.executable, "-c", WORKER, tmp_path), env=environment, stdout=subprocess.PIPE, check=True
    )
    left = identify(int((tmp_path / "daemon").read_text()))
    assert (left is None) == bool(mark)
    assert done.stdout == b"None\n", "the helper bears the mark"
    if left is not None:
        subprocess.run(("kill", "-KILL", str(left.pid)), check=True)
