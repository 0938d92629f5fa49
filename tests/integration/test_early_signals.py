"""A rank that is told to leave before it can hear leaves as soon as it can, and nothing counts as lost."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from backend_tools import eventually
from forked_ranks import Node
from rank_launch import ENVIRONMENT, PATIENCE_S, metrics_of, rank_command, report_of, written_order

from parsl_rasda.types import Outcome

# Becomes the rank with a signal waiting that it was sent while it was blocked.
TOLD_BEFORE = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.Signals[sys.argv[1]]})
os.kill(os.getpid(), signal.Signals[sys.argv[1]])
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("python", ["rank_functions:sleep", "rank_functions:learn"])
def test_a_signal_before_the_rank_listens_is_heard_once_it_does(tmp_path, name, python) -> None:
    order = written_order(tmp_path, python=python, config={"lr": 0.02, "epoch_s": 600})
    command = (sys.executable, "-c", TOLD_BEFORE, name, *rank_command(order))
    done = subprocess.run(command, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)
    assert (done.returncode, report_of(order).outcome) == (0, Outcome.PREEMPTED)
    assert report_of(order).cause == name


# Becomes the rank, whose children are sent SIGTERM as soon as they exist.
CHILDREN_ENDED = """
import os, signal, sys
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from parsl_rasda.runtime.process.rank import main
main(sys.argv[1:])
"""


def test_a_signal_to_a_child_that_has_just_been_forked_is_the_childs_alone(tmp_path) -> None:
    order = written_order(tmp_path, python="rank_functions:fork_once", accelerator="none", until=1)
    command = (sys.executable, "-c", CHILDREN_ENDED, str(tmp_path / "order.json"))
    done = subprocess.run(command, env=ENVIRONMENT, timeout=PATIENCE_S, check=False)
    assert (done.returncode, report_of(order).outcome) == (0, Outcome.REACHED)
    assert [metrics["val_loss"] for metrics in metrics_of(order)] == [-signal.SIGTERM]


def test_a_signal_while_the_fork_server_loads_torch_reaches_the_rank(tmp_path) -> None:
    with Node() as node:
        order = node.order(tmp_path, config={"epoch_s": 600})
        launch = node.start(order)
        eventually(lambda: any(node.sockets.glob("*.sock")), "the server listens, and loads torch")
        launch.send_signal(signal.SIGTERM)
        assert launch.wait(PATIENCE_S) == 0
    assert (report_of(order).outcome, report_of(order).cause) == (Outcome.PREEMPTED, "SIGTERM")


def test_a_signal_to_a_client_that_finds_no_server_reaches_the_rank_it_becomes(tmp_path) -> None:
    with Node(PARSL_RASDA_FORKSERVERS="/proc") as node:  # where no folder can be made
        order = node.order(tmp_path, config={"epoch_s": 600}, accelerator="none")
        launch, log = node.start(order), tmp_path / "log.txt"
        eventually(lambda: "plain start" in log.read_text(), "it becomes the rank")
        launch.send_signal(signal.SIGTERM)
        assert launch.wait(PATIENCE_S) == 0
    assert (report_of(order).outcome, report_of(order).cause) == (Outcome.PREEMPTED, "SIGTERM")
