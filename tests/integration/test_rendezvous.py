"""Ranks that meet: within a time of their own, wherever rank 0 is, and without a file system that locks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rank_launch import ENVIRONMENT, PATIENCE_S

from parsl_rasda.runtime.engine.group import published_address

# One rank of a group, which meets within a second and then may be silent for a minute.
RANK = """
import sys, time
from pathlib import Path
import torch
from parsl_rasda.runtime.engine import group
rank, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
began = time.monotonic()
try:
    it = group.Group(rank, size, torch.device("cpu"), place, one_node=sys.argv[5] == "one",
                     rendezvous_s=float(sys.argv[4]))
except group.PeersLostError as error:
    print(f"lost after {time.monotonic() - began:.1f} s: {error}")
    raise SystemExit(0)
time.sleep(float(sys.argv[6]) if rank else 0.0)
print("sum", it.sum([1.0, rank]), it.gather_strings(f"rank {rank}"))
exec(sys.argv[7])
"""


def group_of(place: Path, ranks, *, size, meet_s=60.0, nodes="one", silent_s=0.0, then="", **environment):
    """Return what each rank says in the end."""
    words = (str(size), str(place), str(meet_s), nodes, str(silent_s), then)
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


# Another user of the node, who knows the port and does what let him in before there was a secret.
STRANGER = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch.distributed
from torch._C._distributed_c10d import TCPStore
from parsl_rasda.runtime.engine.secret_store import SecretStore
host, port, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
"".encode("idna")  # before this Python is out of reach
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for intrude in (
    lambda: (place / "address").read_text(),
    lambda: TCPStore(host, port, None, False, timedelta(seconds=3), False).set("default_pg/0//cpu//0/0", "x"),
    lambda: SecretStore(host, port, "guess", timedelta(seconds=3)).set("string-1", "x"),
):
    try:
        intrude()
    except Exception as error:
        print(type(error).__name__)
    else:
        print("came in")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize("nodes", ["one", "several"])
def test_another_user_of_the_node_cannot_join_the_ranks(tmp_path, nodes) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # so that it is the file that keeps him out
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(group_of, tmp_path, (0,), size=2, nodes=nodes)
        host, port, _ = published_address(tmp_path, 2, PATIENCE_S)
        words = (sys.executable, "-c", STRANGER, host, str(port), str(tmp_path))
        found = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        second = group_of(tmp_path, (1,), size=2, nodes=nodes)
    assert found.stdout.split() == ["PermissionError", "DistNetworkError", "DistNetworkError"], found.stderr
    assert first.result() == ["sum [2.0, 1.0] ('rank 0', 'rank 1')"]
    assert second == ["sum [2.0, 1.0] ()"]


LISTENING = """
import psutil
print({c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"})
"""


def test_ranks_of_one_node_listen_on_the_loopback_interface_alone(tmp_path) -> None:
    """The store of rank 0, and gloo, whose connections nobody has to prove anything for."""
    said = group_of(tmp_path, (0, 1), size=2, then=LISTENING, GLOO_SOCKET_IFNAME="")
    assert all(words.splitlines()[-1] == "{'127.0.0.1'}" for words in said), said


# Rank 0 has a checkpoint; the other is told where nothing is. Then neither can read it.
RESUMING = """
import json
from parsl_rasda.errors import DamagedCheckpointError
from parsl_rasda.runtime.checkpoints.checkpoint import read_header, write_checkpoint
from parsl_rasda.runtime.engine.training_state import TrainingState

def state(seed):
    torch.manual_seed(seed)
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    return model, optimizer, TrainingState(model, [optimizer], None, it, is_sharded=False)

old, optimizer, saved = state(0)
for _ in range(3):
    old(torch.ones(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()
here = place / ("epoch-000001" if rank == 0 else "nothing")
kept = [torch.arange(6).view(2, 3).to(t) for t in (torch.bool, torch.complex64, torch.int16, torch.bfloat16)]
kept = {f"registered.x.{i}": t for i, t in enumerate([*kept, torch.tensor(2.5), torch.zeros(0, 3)])}
if rank == 0:
    write_checkpoint(here, saved.tensors() | kept, {"epoch": 1, **saved.non_tensor_state()})
header = json.loads(it.from_first(lambda: json.dumps(read_header(here))))
new, other, resumed = state(1)
found = resumed.restore(here, header)
print("kept", found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept))
pairs = [*zip(old.state_dict().values(), new.state_dict().values())]
for mine, theirs in zip(optimizer.state.values(), other.state.values()):
    pairs += [(mine[key], theirs[key]) for key in mine]
print("same", all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs), len(pairs))
if rank == 0:
    (here / ".metadata").write_bytes(b"not what was written")
try:
    resumed.restore(here, header)
except DamagedCheckpointError as error:
    print("damaged", "epoch-000001" in str(error))
it.part()  # rank 0 has the store
"""


def test_one_rank_reads_a_checkpoint_for_all_and_tells_all_what_is_wrong_with_it(tmp_path) -> None:
    said = group_of(tmp_path, (0, 1), size=2, then=RESUMING)
    expected = ["kept True", "same True 8", "damaged True"]
    assert [words.splitlines()[1:] for words in said] == [expected] * 2, said
