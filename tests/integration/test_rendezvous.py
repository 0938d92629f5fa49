"""Ranks that meet: within a time of their own, wherever rank 0 is, and without a file system that locks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_launch import ENVIRONMENT, PATIENCE_S

# One rank of a group, which meets within a second and then may be silent for a minute.
RANK = """
import sys, time
from pathlib import Path
import torch
from parsl_rasda.runtime.engine import group
group.RENDEZVOUS_S = float(sys.argv[4])
rank, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
began = time.monotonic()
try:
    it = group.Group(rank, size, torch.device("cpu"), place, one_node=sys.argv[5] == "one")
except group.PeersLostError as error:
    print(f"lost after {time.monotonic() - began:.1f} s: {error}")
    raise SystemExit(0)
time.sleep(float(sys.argv[6]) if rank else 0.0)
print("sum", it.sum([1.0, rank]), it.gather_strings(f"rank {rank}"))
"""


def group_of(place: Path, ranks, *, size, meet_s=60.0, nodes="one", silent_s=0.0, **environment):
    """Return what each rank says in the end."""
    words = (str(size), str(place), str(meet_s), nodes, str(silent_s))
    processes = [
        subprocess.Popen(
            (sys.executable, "-c", RANK, str(rank), *words),
            env={**ENVIRONMENT, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    return [process.communicate(timeout=PATIENCE_S)[0].strip() for process in processes]


@pytest.mark.parametrize("nodes", ["one", "several"])
def test_ranks_do_not_wait_long_for_one_that_never_comes(tmp_path, nodes) -> None:
    began = time.monotonic()
    said = group_of(tmp_path, (0, 1), size=3, meet_s=6.0, nodes=nodes)
    assert all(words.startswith("lost after ") for words in said), said
    assert time.monotonic() - began < 60.0


def test_ranks_that_have_met_wait_longer_for_each_other(tmp_path) -> None:
    said = group_of(tmp_path, (0, 1), size=2, meet_s=10.0, silent_s=15.0)
    assert said == ["sum [2.0, 1.0] ('rank 0', 'rank 1')", "sum [2.0, 1.0] ()"]


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_node_in_the_environment_does_no_harm(tmp_path, address) -> None:
    said = group_of(tmp_path, (0, 1), size=2, nodes="several", MASTER_ADDR=address)
    assert said[0].startswith("sum [2.0, 1.0]"), said


def test_ranks_of_one_node_meet_without_a_file_that_must_be_locked(tmp_path) -> None:
    said = group_of(tmp_path, (0, 1), size=2)
    assert said[0].startswith("sum [2.0, 1.0]"), said
    assert [path.name for path in tmp_path.iterdir()] == ["address"]
    assert (tmp_path / "address").read_text().startswith("127.0.0.1 ")
