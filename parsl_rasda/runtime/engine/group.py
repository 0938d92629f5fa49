"""The ranks of a job as a group: rendezvous, and the few collective operations that training needs.

With one process everything is trivial, and torch.distributed is not imported.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from parsl_rasda import errors
from parsl_rasda.atomic_files import replace_file
from parsl_rasda.devices import BACKEND_VARIABLE
from parsl_rasda.errors import RasdaError
from parsl_rasda.protocol import RENDEZVOUS_S
from parsl_rasda.runtime.engine.roll_call import RollCall
from parsl_rasda.runtime.engine.setup_errors import (
    OWN_ERRORS,
    check_backend,
    check_interfaces,
    setting_up,
    words_of_backend,
)

if TYPE_CHECKING:
    from torch import Tensor, device, dtype
    from torch._C._distributed_c10d import Store
    from torch.distributed import Work

    from parsl_rasda.runtime.engine.beside import Beside

MORE_PER_RANK_S = 0.1  # to meet: file systems and launchers start the ranks one after the other
LOOKS_PER_S = 2_000.0  # at the address of rank 0, by all ranks together: it is on a file system for all
LONGEST_PAUSE_S = 1.0  # between two looks of a rank
SILENCE_S = 1800.0  # a rank may be busy for long, for example with plots on rank 0
PACK_BYTES = 25 * 2**20  # of a broadcast
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"
ADDRESS = "address"  # a file of the attempt
BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}
CAN_CHANGE_PATIENCE = ("cuda", "cpu")  # torch can change it for NCCL and gloo


class PeersLostError(RasdaError):
    """Another rank is gone, so the job is lost."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"Lost contact with the other ranks: {self.cause}"


class Group:
    """All ranks of a job.

    Args:
        directory: The attempt's directory, in which rank 0 publishes its address.
        one_node: Whether to meet over the loopback interface.
        rendezvous_s: As in `JobSpec`.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        device: device | None,
        directory: Path,
        *,
        one_node: bool,
        rendezvous_s: float = RENDEZVOUS_S,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._backend = backend_for(device.type if device else "cpu")
        self._roll_call: RollCall | None = None
        self._answers = 0  # of rank 0 to all
        self._beside: Beside | None = None
        if size > 1:
            with _peers():
                patience_s = meeting_s(size, rendezvous_s)
                self._store = self._rendezvous(directory, patience_s, one_node=one_node)
            self._roll_call = RollCall(rank, size, self._store, SILENCE_S)

    def meet(self, what: str, detail: str = "") -> None:
        """Wait until all ranks are about to do the same, before they do it.

        Args:
            what: In the user's words.
            detail: What must be the same, besides, on all ranks.

        Raises:
            TrainingError: If they are not.
        """
        if self._roll_call is not None:
            with _peers():
                self._roll_call.meet(what, detail)

    def part(self) -> None:
        """Meet no more. Rank 0 has the store, and leaves when the others know of the last meeting."""
        if self._roll_call is not None:
            with _peers():
                self._roll_call.part()

    def enter_step(self) -> None:
        """Note that the ranks begin to exchange what a step needs."""
        if self._roll_call is not None:
            self._roll_call.enter_step()

    def _rendezvous(self, directory: Path, patience_s: float, *, one_node: bool) -> Store:
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _set_pg_timeout

        from parsl_rasda.runtime.engine import secret_store

        assert self.device is not None  # noqa: S101 - a group of several is made with one
        patience = timedelta(seconds=patience_s)
        if one_node:  # else gloo listens where other nodes can connect
            os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK_INTERFACE
        check_backend(self._backend, self.device, dist.is_backend_available, torch.__version__)
        check_interfaces(self._backend, os.environ, [name for _, name in socket.if_nameindex()])
        store: Store
        if self.rank == 0:
            listener = socket.create_server((LOOPBACK, 0)) if one_node else listening(os.environ)
            host, port = listener.getsockname()[:2]
            address = Address(host, port, secrets.token_hex(16))
            store = secret_store.serve(listener, address.secret, patience)
            publish_address(directory, address)
        else:
            store = secret_store.SecretStore(*published_address(directory, self.size, patience_s), patience)
        can_change = self.device.type in CAN_CHANGE_PATIENCE
        with setting_up(self._backend, self.device, self._memory):
            dist.init_process_group(
                self._backend,
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=patience if can_change else timedelta(seconds=SILENCE_S),
            )
            if self._backend != "gloo":  # which has connected by now; others do so with the first collective
                first = torch.zeros(1, device=self.device)
                dist.all_reduce(first)
                first.item()
        if can_change:  # only now: a rank that never comes must not take as long to notice
            _set_pg_timeout(timedelta(seconds=SILENCE_S))
        return store

    def _memory(self) -> tuple[int, int, int]:
        """Return how much of the GPU's memory is free, how much it has, and how much torch holds here."""
        import torch

        module = torch.get_device_module(self.device)
        free, total = module.mem_get_info(self.device)
        return int(free), int(total), int(module.memory_reserved(self.device))

    def agree(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return the maximum of each number over all ranks."""
        if self.size == 1:
            return tuple(numbers)
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        with _peers():
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
            return tuple(int(v) for v in values.tolist())

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number, which is exact if only one rank has it non-zero."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with _peers():
            dist.all_reduce(values)
            return [float(v) for v in values.tolist()]

    def gather_strings(self, string: str) -> tuple[str, ...]:
        """Return the strings of all ranks on rank 0, and nothing on the others."""
        if self.size == 1:
            return (string,)
        with _peers():
            self._store.set(f"string-{self.rank}", string)
            if self.rank:
                return ()
            return tuple(self._store.get(f"string-{rank}").decode() for rank in range(self.size))

    def from_first(self, produce: Callable[[], str]) -> str:
        """Return on every rank what a function returns on rank 0, or raise what it raises there.

        Raises:
            RasdaError: As rank 0 does, if it is one of `errors`; the others may not be known everywhere.
        """
        if self.size == 1:
            return produce()
        self._answers += 1
        key = f"first-{self._answers}"
        if self.rank == 0:
            try:
                value = produce()
            except RasdaError as error:
                self._store.set(
                    key, json.dumps({"error": type(error).__name__, "given": error.args}, default=str)
                )
                raise
            self._store.set(key, json.dumps({"value": value}))
            return value
        with _peers():
            self._store.wait([key], timedelta(seconds=SILENCE_S))
            answer = json.loads(self._store.get(key))
        if "value" in answer:
            return str(answer["value"])
        kind = getattr(errors, answer["error"], None)
        raise PeersLostError(f"rank 0 failed: {answer['error']}") if kind is None else kind(*answer["given"])

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of rank 0; small ones are sent together."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        with _peers():
            for bucket in _packed(tensors):
                flat = torch.cat([tensor.detach().reshape(-1).to(self.device) for tensor in bucket])
                dist.broadcast(flat, 0)
                parts = torch.split(flat, [tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.detach().copy_(part.view(tensor.shape))

    @property
    def beside(self) -> Beside:
        """Where exchanges run beside the backward pass."""
        from parsl_rasda.runtime.engine.beside import OnStream, OnThread

        if self._beside is None:
            device = self.device
            self._beside = OnThread() if device is None or device.type == "cpu" else OnStream(device)
        return self._beside

    def start_swap(self, mine: Tensor, theirs: Tensor, peer: int, tag: int) -> Callable[[], None]:
        """Start to send one tensor to a peer and to receive another from it.

        Args:
            mine: Sent; unchanged until the end.
            theirs: Received.
            peer: Rank.
            tag: The same on both sides; tells swaps apart that run at the same time.

        Returns:
            What waits for the end.
        """
        import torch
        import torch.distributed as dist

        is_staged = (
            self._backend == "gloo" and mine.device.type != "cpu"
        )  # gloo can reduce those, but not send them
        here, there = (mine.cpu(), torch.empty_like(theirs, device="cpu")) if is_staged else (mine, theirs)
        exchange = [
            dist.P2POp(way, tensor, peer, tag=tag)
            for way, tensor in ((dist.irecv, there), (dist.isend, here))
            if tensor.numel()
        ]
        with _peers():
            works = dist.batch_isend_irecv(exchange) if exchange else []

        def wait() -> None:
            with _peers():
                for work in works:
                    work.wait()
            exchange.clear()  # it held what is sent
            if is_staged:
                theirs.copy_(there)

        return wait

    def start_sum(self, tensor: Tensor) -> Work | None:
        """Start to add a tensor over all ranks, in place."""
        if self.size == 1:
            return None
        import torch.distributed as dist

        with _peers():
            work: Work = dist.all_reduce(tensor, async_op=True)
            return work

    def finish(self, work: Work | None) -> None:
        """Wait for the end of a `start_sum`."""
        if work is not None:
            with _peers():
                work.wait()


def backend_for(kind: str) -> str:
    """Return the name in torch of what adds gradients on a kind of devices."""
    return os.environ.get(BACKEND_VARIABLE, BACKENDS[kind])


def own_address() -> str:
    """Return an address of this node that the other nodes can reach; loopback if there is no network.

    The interface that the site names for gloo and NCCL comes first: on many machines the host name of a
    node resolves to an Ethernet that does not connect all nodes.
    """
    for candidate in (_address_of_named_interface, _resolved_hostname, _address_of_default_route):
        try:
            address = candidate()
        except OSError:
            continue
        if not address.startswith("127."):
            return address
    return LOOPBACK


class Address(NamedTuple):
    """Where rank 0 listens.

    Attributes:
        secret: Known to the ranks alone; empty if there is none.
    """

    host: str
    port: int
    secret: str = ""


def publish_address(directory: Path, address: Address) -> None:
    """Tell the other ranks where rank 0 listens; no other user is told, nor a group."""
    replace_file(directory / ADDRESS, " ".join(map(str, address)), is_durable=False, mode=0o600)


def meeting_s(ranks: int, rendezvous_s: float) -> float:
    """Return how long so many ranks may take to meet [s]: what the site says, and more with each rank."""
    return rendezvous_s + ranks * MORE_PER_RANK_S


def look_pause_s(waited_s: float, ranks: int) -> float:
    """Return how long a rank waits before it looks for the address again [s].

    The longer it has waited, the less a longer pause matters; all ranks look on one file system.
    """
    return max(0.02, ranks / LOOKS_PER_S, min(waited_s / 8, LONGEST_PAUSE_S))


def published_address(directory: Path, ranks: int, patience_s: float) -> Address:
    """Wait for the address of rank 0.

    Args:
        directory: Of the attempt.
        ranks: How many of them wait.
        patience_s: For how long, at most [s].

    Raises:
        PeersLostError: If it is not published in time.
    """
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < patience_s:
        try:
            host, port, secret = (directory / ADDRESS).read_text(encoding="utf-8").split(" ")
        except FileNotFoundError:
            time.sleep(look_pause_s(waited_s, ranks))
        else:
            return Address(host, int(port), secret)
    raise PeersLostError(f"rank 0 published no address within {patience_s:g} s")


def listening(environ: Mapping[str, str], port: int = 0) -> socket.socket:
    """Return a listening socket of rank 0: at MASTER_ADDR if that is this node, else at its own address.

    A site's MASTER_ADDR is often the first node of the allocation, while rank 0 may be on another.
    """
    if named := environ.get("MASTER_ADDR"):
        with suppress(OSError):
            return socket.create_server((named, port))
    return socket.create_server((own_address(), port))


def _address_of_named_interface() -> str:
    import psutil

    named = (os.environ.get(name, "") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"))
    wanted = [name for names in named for name in names.split(",") if name]
    for interface in wanted:
        for address in psutil.net_if_addrs().get(interface, ()):
            if address.family is socket.AF_INET:
                return str(address.address)
    raise OSError(f"no address on {', '.join(wanted) or 'a named interface'}")


def _resolved_hostname() -> str:
    return socket.gethostbyname(socket.gethostname())


def _address_of_default_route() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; TEST-NET-1, RFC 5737
        return str(probe.getsockname()[0])


def _packed(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in groups of one type and of `PACK_BYTES`, unless one is larger."""
    kinds: dict[dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for alike in kinds.values():
        pack, size = [alike[0]], alike[0].nbytes
        for tensor in alike[1:]:
            if size + tensor.nbytes > PACK_BYTES:
                yield pack
                pack, size = [], 0
            pack.append(tensor)
            size += tensor.nbytes
        yield pack


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the error that torch raises when a peer is gone into `PeersLostError`.

    gloo raises a bare RuntimeError, so this context may contain nothing but communication.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ in OWN_ERRORS or "CUDA error:" in str(error):
            raise
        raise PeersLostError(words_of_backend(error)) from error
