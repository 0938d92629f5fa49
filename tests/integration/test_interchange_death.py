"""Parsl's interchange dies: nobody waits for what it will never say, or for its taking anything."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from backend_tools import eventually, local_site

from parsl_rasda.backends.parsl.htex import PilotExecutor, build_executor

pytestmark = [pytest.mark.parsl, pytest.mark.slow]


def an_executor(folder: Path) -> PilotExecutor:
    executor = build_executor(
        local_site(),
        "pilot",
        workers=1,
        addresses=("127.0.0.1",),
        worker_init="",
        mark="mark",
        on_states=lambda label, states: None,
    )
    executor.run_dir = executor.provider.script_dir = str(folder)
    return executor


def test_an_interchange_that_dies_while_it_starts_is_not_waited_for(tmp_path: Path) -> None:
    executor = an_executor(tmp_path)
    executor.interchange_launch_cmd = ("sh", "-c", "cat > /dev/null")  # takes its settings, and ends
    with pytest.raises(Exception, match="Interchange failed to start"):
        executor.start()
    assert executor.is_dead
    executor.shutdown()


def test_a_task_for_an_interchange_that_has_died_is_refused_at_once(tmp_path: Path) -> None:
    """Blocked in ZeroMQ, whoever submits it would block the whole backend, and abort it when that closes."""
    executor, refused = an_executor(tmp_path), Future[Exception]()
    executor.start()
    executor.interchange_proc.kill()
    executor.interchange_proc.wait()

    def submit_until_refused() -> None:
        try:
            while True:
                executor.submit(abs, {}, -1)
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            refused.set_result(error)

    threading.Thread(target=submit_until_refused, daemon=True).start()
    assert "interchange" in str(refused.result(timeout=20.0))
    eventually(lambda: executor.is_dead)
    executor.shutdown()
