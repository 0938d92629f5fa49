"""Signals end a run in time, also one that hangs; a display that fails does not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from parsl_rasda.orchestration.progress import GuardedProgress, NoProgress

HANGS = """
import threading
from parsl_rasda.workflow import run
asked = []
with run._signals(lambda again: asked.append(again), 1.0):
    print("ready", flush=True)
    {hang}
print(asked, flush=True)
"""
LOCK = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
HEEDS = "import time\n    while not asked: time.sleep(0.01)"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("hang", "code", "said"), [(LOCK, 130, ""), (HEEDS, 0, "[False]\n")])
def test_a_signal_ends_a_run_in_time(number: signal.Signals, hang: str, code: int, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS.format(hang=hang)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30.0)[0] == said
    assert process.returncode == code


class Broken(NoProgress):
    def __init__(self) -> None:
        self.calls = 0

    def stage_started(self, name: str, total: int) -> None:
        self.calls += 1
        raise BrokenPipeError

    def add(self, event, instructions) -> None:
        raise ValueError("a bug of the display")


def test_a_display_that_fails_is_not_asked_again_and_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    guarded = GuardedProgress(broken)
    guarded.stage_started("a", 1)
    guarded.stage_started("b", 1)
    assert broken.calls == 1
    assert "the run goes on" in caplog.text
    watcher = GuardedProgress(Broken()).search("a", None, None, alone=True)
    watcher.add(None, ())
    watcher.add(None, ())
