"""Models larger than one GPU: parameters, gradients and optimizer states in parts, one a rank (FSDP2).

What is computed is what `reduce: ddp` computes: the order in which gradients are added is the
library's own. Checkpoints hold whole tensors under the same names, so that a trial may change its
width, or come from an unsharded one. Rank 0 keeps a whole copy on the CPU while it writes one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.reduction import Flag, added, flattened, unflatten


def check_sharding(training: Training) -> None:
    """Refuse what sharded models cannot do.

    Raises:
        InvalidSettingError: If another setting contradicts ``training.sharding``.
    """
    if training.sharding not in {"none", "fsdp"}:
        raise InvalidSettingError("training.sharding", training.sharding, "none, fsdp")
    if training.reduce == "exact":
        raise InvalidSettingError("training.reduce", "exact with sharding: fsdp", "ddp, auto")
    if training.precision == "fp16":  # each rank would see the infinities of its own part only
        raise InvalidSettingError("training.precision", "fp16 with sharding: fsdp", "bf16, fp32")
    if training.compile:
        raise InvalidSettingError("training.compile", "true with sharding: fsdp", "false")


def shard(model: nn.Module, group: Group) -> None:
    """Share a model's parameters among the ranks, in place, after making them those of rank 0.

    The elements of every `nn.Sequential` and `nn.ModuleList` are gathered one after the other while the
    model runs; what remains is gathered once. No rank ever holds all of the model on its device.
    """
    assert group.device is not None  # noqa: S101 - a group of several ranks has one
    group.broadcast([t for t in model.state_dict().values() if isinstance(t, Tensor)])
    mesh = init_device_mesh(group.device.type, (group.size,))
    lists = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    for part in reversed([child for parent in lists for child in parent.children()]):
        is_done = isinstance(part, FSDPModule | nn.ModuleList | nn.ModuleDict)
        if not is_done and any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to(group.device)  # buffers, and what is not shared


def whole(tensor: Tensor, *, keep: bool) -> Tensor:
    """Return a tensor as checkpoints hold it; a collective if it is in parts. Empty unless ``keep``."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if keep else torch.empty(0)


def room(owner: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Return room for this rank's part of a tensor, divided as its owner is; None if it stays whole."""
    if not isinstance(owner, DTensor) or shape != owner.shape:
        return None
    return torch.empty_like(owner, dtype=dtype)


class ShardedSum:
    """Gradients are added by FSDP itself after each backward pass; see `reduction.Reduction`.

    FSDP averages over the ranks: `scale` on every loss makes the average a sum.
    """

    def __init__(self, group: Group, model: nn.Module) -> None:
        self.scale = float(group.size)
        self._group, self._parameters = group, list(model.parameters())
        self._sums: list[Tensor] = []
        self._flag = Flag(group)
        self._fresh = True

    def begin(self, *, last: bool) -> None:
        """Gradients of the step's micro-batches accumulate, in parts: each backward pass sends its own.

        Sending only the last sum would be faster, but holds the gradients of the whole model until then.
        """
        if self._fresh:
            self._fresh, self._sums = False, []
            for parameter in self._parameters:
                parameter.grad = None

    def add(self, values: Sequence[Tensor], weight: float) -> None:
        """Take the values as they are after this micro-batch."""
        self._sums = added(self._sums, values, weight)

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Add the values and the flag; the gradients are in place."""
        self._fresh = True
        flag = torch.tensor([float(halt)], device=self._group.device)
        tail = flattened([*self._sums, flag])
        self._group.finish(self._group.start_sum(tail))
        unflatten(tail, [*means, flag])
        return self._flag.raised(flag)
