"""The ranks of a job as a group: rendezvous, and the few collective operations that training needs.

With one process everything is trivial, and torch.distributed is not imported.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.errors import RasdaError
from parsl_rasda.runtime.engine.roll_call import RollCall

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch._C._distributed_c10d import Store
    from torch.distributed import Work

    from parsl_rasda.runtime.engine.beside import Beside

RENDEZVOUS_S = 120.0
SILENCE_S = 1800.0  # a rank may be busy for long, for example with plots on rank 0
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"
ADDRESS = "address"  # a file of the attempt
BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}
BACKEND_VARIABLE = "PARSL_RASDA_BACKEND"  # instead of these: gloo lets several ranks share a GPU
CAN_CHANGE_PATIENCE = ("cuda", "cpu")  # torch can change it for NCCL and gloo
OWN_ERRORS = {
    "OutOfMemoryError",
    "AcceleratorError",
}  # errors of this rank's kernels, which torch may notice late


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
    """

    def __init__(
        self, rank: int, size: int, device: device | None, directory: Path, *, one_node: bool
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        kind = device.type if device else "cpu"
        self._backend = os.environ.get(BACKEND_VARIABLE, BACKENDS[kind])
        self._roll_call: RollCall | None = None
        self._beside: Beside | None = None
        if size > 1:
            with _peers():
                self._store = self._rendezvous(directory, one_node=one_node)
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

    def _rendezvous(self, directory: Path, *, one_node: bool) -> Store:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _set_pg_timeout

        from parsl_rasda.runtime.engine import secret_store

        assert self.device is not None  # noqa: S101 - a group of several is made with one
        patience = timedelta(seconds=RENDEZVOUS_S)
        if one_node:  # else gloo listens where other nodes can connect
            os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK_INTERFACE
        store: Store
        if self.rank == 0:
            listener = socket.create_server((LOOPBACK, 0)) if one_node else listening(os.environ)
            host, port = listener.getsockname()[:2]
            address = Address(host, port, secrets.token_hex(16))
            store = secret_store.serve(listener, address.secret, patience)
            publish_address(directory, address)
        else:
            store = secret_store.SecretStore(*published_address(directory), patience)
        can_change = self.device.type in CAN_CHANGE_PATIENCE
        dist.init_process_group(
            self._backend,
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=patience if can_change else timedelta(seconds=SILENCE_S),
        )
        if can_change:  # only now: a rank that never comes must not take as long to notice
            _set_pg_timeout(timedelta(seconds=SILENCE_S))
        return store

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

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of rank 0."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with _peers():
            for tensor in tensors:
                contiguous = tensor.detach().to(self.device).contiguous()
                dist.broadcast(contiguous, 0)
                tensor.detach().copy_(contiguous)

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


def published_address(directory: Path) -> Address:
    """Wait for the address of rank 0.

    Raises:
        PeersLostError: If it is not published in time.
    """
    end = time.monotonic() + RENDEZVOUS_S
    while time.monotonic() < end:
        try:
            host, port, secret = (directory / ADDRESS).read_text(encoding="utf-8").split(" ")
        except FileNotFoundError:
            time.sleep(0.02)
        else:
            return Address(host, int(port), secret)
    raise PeersLostError(f"rank 0 published no address within {RENDEZVOUS_S:g} s")


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
        raise PeersLostError(str(error).partition("\n")[0]) from error
