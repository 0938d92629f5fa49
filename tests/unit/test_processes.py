"""Who a process is."""

import os
import subprocess
from pathlib import Path

from parsl_rasda.processes import ProcessId, identify


def test_a_process_is_known_by_its_start() -> None:
    me = identify(os.getpid())
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    assert me == ProcessId(os.getpid(), ticks)
    assert me.is_alive
    assert not ProcessId(me.pid, me.start - 1).is_alive


def test_a_zombie_is_nobody() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identify(child.pid) is None
    assert identify(child.pid) is None
