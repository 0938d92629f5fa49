"""Ranks in one process: groups whose swaps go through a table in memory."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from parsl_rasda.runtime.engine.group import Group

PATIENCE_S = 60.0


class Inline:
    """Runs an exchange at once."""

    def start(self, exchange) -> None:
        exchange()

    def wait(self) -> None:
        pass


class Table:
    """What is under way between the ranks of a process."""

    def __init__(self) -> None:
        self._sent, self._changed = {}, threading.Condition()

    def put(self, key, tensor) -> None:
        with self._changed:
            self._sent.setdefault(key, []).append(tensor.clone())
            self._changed.notify_all()

    def take(self, key):
        with self._changed:
            assert self._changed.wait_for(lambda: self._sent.get(key), timeout=PATIENCE_S), key
            return self._sent[key].pop(0)


class GroupInMemory(Group):
    """One of several ranks that are threads."""

    beside = Inline()

    def __init__(self, rank, size, table, directory) -> None:
        super().__init__(0, 1, torch.device("cpu"), directory, one_node=True)
        self.rank, self.size, self._table = rank, size, table

    def start_swap(self, mine, theirs, peer, tag):
        assert mine.is_contiguous()
        assert theirs.is_contiguous()
        self._table.put((self.rank, peer, tag), mine)
        return lambda: theirs.copy_(self._table.take((peer, self.rank, tag)))

    def agree(self, numbers):
        others = [rank for rank in range(self.size) if rank != self.rank]
        mine = torch.tensor(numbers)
        for peer in others:
            self._table.put((self.rank, peer, "agree"), mine)
        every = [mine, *(self._table.take((peer, self.rank, "agree")) for peer in others)]
        return tuple(torch.stack(every).amax(0).tolist())


class GroupOfOne(Group):
    """The only rank of eight that there is: it receives zeros."""

    beside = Inline()

    def __init__(self, size, directory) -> None:
        super().__init__(0, 1, torch.device("cpu"), directory, one_node=True)
        self.size = size

    def start_swap(self, mine, theirs, peer, tag):
        return lambda: ctypes.memset(theirs.data_ptr(), 0, theirs.nbytes)  # no call of an operator

    def agree(self, numbers):
        return tuple(numbers)

    def sum(self, numbers):
        return list(numbers)

    def broadcast(self, tensors) -> None:
        pass


def on_each_rank(size, directory, work):
    """Return what `work` returns on each rank, given its group."""
    table = Table()
    with ThreadPoolExecutor(size) as ranks:
        groups = [GroupInMemory(rank, size, table, directory) for rank in range(size)]
        return list(ranks.map(work, groups))
