"""Parsl's interchange dies before it has said a word: a pilot is given up at once, not after two minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from backend_tools import local_site

from parsl_rasda.backends.parsl.htex import build_executor

pytestmark = [pytest.mark.parsl, pytest.mark.slow]


def test_an_interchange_that_dies_while_it_starts_is_not_waited_for(tmp_path: Path) -> None:
    executor = build_executor(
        local_site(),
        "pilot",
        workers=1,
        address="127.0.0.1",
        worker_init="",
        mark="mark",
        on_states=lambda label, states: None,
    )
    executor.run_dir = executor.provider.script_dir = str(tmp_path)
    executor.interchange_launch_cmd = ("sh", "-c", "cat > /dev/null")  # takes its settings, and ends
    with pytest.raises(Exception, match="Interchange failed to start"):
        executor.start()
    assert executor.is_dead
    executor.shutdown()
