"""A training function that only examines the machine, for `parsl-rasda doctor`.

Each rank writes what it sees into the attempt's folder. Rank 0 reports the bandwidth of an all-reduce as
the metric ``gb_s``, and what a step takes that only exchanges gradients, as training does, as ``exchange_s``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.runtime.attempt.attempt import FORKED
from parsl_rasda.runtime.engine.group import backend_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from parsl_rasda.runtime.trial import Trial

_MIB = 1 << 20
_BYTES = {"cpu": 8 * _MIB, "cuda": 256 * _MIB, "xpu": 256 * _MIB}
_ROUNDS = 5
_NCCL_FILE = "NCCL_DEBUG_FILE"
_VIA = re.compile(r"via NET/([^/\n]+)/\d+(/GDRDMA)?")  # of a channel between two nodes
_NETWORK = re.compile(r"Using network (.+)")  # what it would take


def examine(trial: Trial) -> None:
    """Write what this rank sees to a file, and measure how fast the ranks add gradients."""
    has_torch = bool(trial.inputs.get("torch"))
    exchange_s = _exchange(trial) if has_torch and trial.world_size > 1 else None
    for _ in trial.epochs():
        seen: dict[str, Any] = {
            "job": trial.directory.parent.parent.name,
            "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "python": ".".join(platform.python_version_tuple()[:2]),
            "forked": FORKED in os.environ,
            "mask": {name: os.environ[name] for name in DEVICE_MASKS.values() if name in os.environ},
        }
        gb_s = 0.0
        if has_torch:
            trial.mean([0.0])  # the ranks have met
            seen |= {"clock": time.time(), **_versions(trial)}
            gb_s = _all_reduce_gb_s(trial)
            seen |= {"transport": _transport(), "exchanged_mb": _BYTES[trial.device.type] / 1e6}
        (trial.directory / f"rank-{trial.rank}.json").write_text(json.dumps(seen), encoding="utf-8")
        trial.report(gb_s=gb_s, exchange_s=exchange_s() if exchange_s else 0.0)


def _versions(trial: Trial) -> dict[str, Any]:
    import torch

    device = trial.device
    backend = backend_for(device.type)
    found: dict[str, Any] = {"torch": torch.__version__, "device": "cpu", "cuda": None, "nccl": None}
    found |= {"backend": backend, "has_backend": torch.distributed.is_backend_available(backend)}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.hip or torch.version.cuda
        found["nccl"] = ".".join(str(n) for n in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]  # torch
    elif device.type == "xpu":
        found["device"] = torch.xpu.get_device_name(device)
    return found


def _all_reduce_gb_s(trial: Trial) -> float:
    """Return the bus bandwidth of an all-reduce [GB/s], which is that of the slowest link; 0 for one rank.

    Source: the definition of NVIDIA's nccl-tests, ``busbw = bytes / time * 2 (n - 1) / n``.
    """
    import torch
    import torch.distributed as dist

    if trial.world_size == 1:
        return 0.0
    size = _BYTES[trial.device.type]
    tensor = torch.ones(size // 4, dtype=torch.float32, device=trial.device)
    dist.all_reduce(tensor)
    trial.mean([0.0])  # also waits for the device
    began = time.monotonic()
    for _ in range(_ROUNDS):
        dist.all_reduce(tensor)
    trial.mean([float(tensor[0] > 0)])
    seconds = (time.monotonic() - began) / _ROUNDS
    ranks = trial.world_size
    return size / seconds * 2 * (ranks - 1) / ranks / 1e9


def _exchange(trial: Trial) -> Callable[[], float]:
    """Prepare a model that is only a vector, and return what trains it for an epoch.

    That returns what a step takes [s]: an exchange of as many bytes as an all-reduce here has.
    """
    import torch

    size = _BYTES[trial.device.type] // 4

    class Vector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight.mean() * x.mean()

    model, _ = trial.prepare(Vector(), torch.optim.SGD, lr=0.0)
    data = torch.ones((_ROUNDS + 1) * trial.world_size)  # a sample for each replica and step

    def train() -> float:
        began = 0.0
        for batch in trial.batches((data,)):
            (x,) = batch
            trial.step(model(x))
            if not began:  # after the first step, which sets up what the others use
                trial.mean([0.0])
                began = time.monotonic()
        trial.mean([float(model.weight.detach()[0])])  # also waits for the device
        return (time.monotonic() - began) / _ROUNDS

    return train


def _transport() -> str:
    """Return how NCCL or RCCL reaches other nodes, as it says in its file; nothing if it says nothing."""
    named = os.environ.get(_NCCL_FILE)
    if not named:
        return ""
    path = Path(named.replace("%p", str(os.getpid())).replace("%h", socket.gethostname()))
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        path.unlink()
    except OSError:
        return ""
    return transport_of(text)


def transport_of(text: str) -> str:
    """Return the transport that a log of NCCL's names: Socket, IB, AWS Libfabric, OFI; nothing if none.

    Source: NCCL's transport/net.cc and init.cc, at ``NCCL_DEBUG=INFO``.
    """
    if via := _VIA.search(text):
        return f"{via[1]}{' with GPU direct' if via[2] else ''}"
    network = _NETWORK.search(text)
    return network[1].strip() if network else ""
