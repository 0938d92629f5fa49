"""A store that serves those who know its secret, and nobody else."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistNetworkError, DistStoreError

from parsl_rasda.runtime.engine import secret_store
from parsl_rasda.runtime.engine.secret_store import SecretStore

SOON = timedelta(seconds=20)
RANK_0 = """
import socket, sys
from datetime import timedelta
from parsl_rasda.runtime.engine import secret_store
listener = socket.create_server(("127.0.0.1", 0))
secret_store.serve(listener, "hush", timedelta(seconds=20))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
BYTES = bytes(range(256))


class Meeting:
    """A store as rank 0 has it, and as others find it."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.store = secret_store.serve(listener, "hush", SOON)

    def join(self, secret: str = "hush") -> SecretStore:
        return SecretStore("127.0.0.1", self.port, secret, SOON)


@pytest.fixture
def meeting() -> Meeting:
    return Meeting()


def test_it_is_a_store_as_torch_knows_it(meeting: Meeting) -> None:
    mine = meeting.join()
    store = PrefixStore("p", mine)  # calls it from C++, as process groups do
    store.set("a", BYTES)
    store.multi_set(["b", "c"], ["1", "2"])
    store.append("c", "3")
    assert store.get("a") == BYTES
    assert store.multi_get(["b", "c"]) == [b"1", b"23"]
    assert (store.add("n", 2), store.add("n", 3)) == (2, 5)
    assert store.compare_set("b", "1", "5") == b"5"
    assert store.compare_set("b", "1", "6") == b"5"
    assert (store.check(["a"]), store.check(["a", "z"])) == (True, False)
    assert (store.delete_key("a"), store.delete_key("a")) == (True, False)
    assert store.has_extended_api()
    store.wait(["b"])
    store.wait(["b"], timedelta(seconds=1))
    copy = store.clone()
    assert copy.get("b") == b"5"
    mine.set("plain", "text")
    assert (meeting.store.get("plain"), meeting.store.get("p/c")) == (b"text", b"23")
    assert mine.num_keys() == meeting.store.num_keys()


@pytest.mark.parametrize(
    "ask", [lambda s: s.get("never"), lambda s: s.wait(["never"], timedelta(seconds=0.1))]
)
def test_what_never_comes_is_an_error_in_time_and_the_store_goes_on(
    meeting: Meeting, ask: Callable[[Store], object]
) -> None:
    mine = meeting.join()
    mine.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(DistStoreError):
        ask(PrefixStore("p", mine))
    mine.set("a", "1")
    assert mine.get("a") == b"1"


def test_ranks_wait_for_each_other(meeting: Meeting) -> None:
    ranks = [meeting.join() for _ in range(8)]

    def meet(rank: int) -> bytes:
        PrefixStore("p", ranks[rank]).set(str(rank), str(rank))
        return b"".join(PrefixStore("p", ranks[rank]).get(str(other)) for other in range(8))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(meet, range(8))) == {b"01234567"}
        assert sorted(threads.map(lambda rank: ranks[rank].add("n", 1), range(8))) == list(range(1, 9))


def test_a_stranger_is_told_nothing_and_keeps_nobody_out(meeting: Meeting) -> None:
    meeting.store.set("address", "mine")
    where = "127.0.0.1", meeting.port
    with socket.create_connection(where), socket.create_connection(where) as link:  # the first says nothing
        nonce = link.recv(32)
        link.sendall(bytes(64))
        assert (len(nonce), link.recv(1)) == (32, b"")
        with pytest.raises(DistNetworkError):
            meeting.join(secret="guess")
        with pytest.raises(DistNetworkError):
            TCPStore(*where, None, False, timedelta(seconds=1), False)
        assert meeting.join().get("address") == b"mine"


def test_a_stranger_in_the_place_of_rank_0_is_not_believed() -> None:
    def pose(listener: socket.socket) -> None:
        link, _ = listener.accept()
        with link:
            link.sendall(bytes(32))
            proof = link.recv(64)[32:]
            link.sendall(proof)  # of somebody else: it does not know the secret

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        threads.submit(pose, listener)
        with pytest.raises(DistNetworkError, match="does not know the secret"):
            SecretStore("127.0.0.1", listener.getsockname()[1], "hush", SOON)


@pytest.mark.slow
def test_a_rank_notices_that_rank_0_is_gone() -> None:
    words = (sys.executable, "-c", RANK_0)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank_0:
        assert rank_0.stdout is not None
        mine = SecretStore("127.0.0.1", int(rank_0.stdout.readline()), "hush", SOON)
        mine.set("a", "1")
        rank_0.kill()
        with pytest.raises(DistNetworkError, match="rank 0, which has the store, is gone"):
            mine.get("never")
