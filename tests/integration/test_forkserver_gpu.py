"""A fork server that could not promise an untouched GPU refuses, and ranks start plainly."""

from __future__ import annotations

import pytest
import torch
from forked_ranks import Node, described
from rank_launch import ENVIRONMENT

# What a library may do when it is imported; the server imports h5py after torch.
LIBRARIES = {
    "a context": ("import torch; torch.cuda.is_initialized = lambda: True", "opened a GPU"),
    "a driver that only a fork notices": (
        "import os, torch; me = os.getpid(); torch.cuda._is_in_bad_fork = lambda: os.getpid() != me",
        "opened a GPU",
    ),
    "a device file": (
        "import sys; sys.modules['__main__'].GPU_FILES = ('/dev/zero',); kept = open('/dev/zero')",
        "opened a GPU",
    ),
    "a thread": (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "started 1 threads",
    ),
}
REAL = "import torch; kept = torch.zeros(1, device='cuda')"


def log_of_a_start_with(library: str, folder) -> str:
    """Return what a rank says that starts where importing h5py does this; it must start plainly."""
    (folder / "mine").mkdir()
    (folder / "mine" / "h5py.py").write_text(library)
    with Node(PYTHONPATH=f"{folder / 'mine'}:{ENVIRONMENT['PYTHONPATH']}") as node:
        order = node.order(folder / "order", accelerator="none")
        status, log = node.finished(order)
        assert (status, described(order)["forked"], node.servers()) == (0, False, []), log
        return log


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_server_that_cannot_be_forked_from_says_why_and_leaves(tmp_path, name) -> None:
    library, reason = LIBRARIES[name]
    log = log_of_a_start_with(library, tmp_path)
    assert "plain start, without the fork server: importing torch" in log
    assert reason in log


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_context_on_a_real_gpu_is_noticed(tmp_path) -> None:
    assert "opened a GPU" in log_of_a_start_with(REAL, tmp_path)
