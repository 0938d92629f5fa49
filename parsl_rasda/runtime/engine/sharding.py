"""Models larger than one GPU: each rank has a shard of parameters, gradients and optimizer states (FSDP2).

The result is that of `reduce: ddp`: the library chooses the order in which gradients are added. Checkpoints
hold whole tensors under the same names, so a trial can change its world size, or continue an unsharded one.
Rank 0 holds a whole copy on the CPU while it writes a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.reduction import NOTHING, Part, added
from parsl_rasda.runtime.engine.tail import Flag, Tail, Usage


def check_sharding(training: Training) -> None:
    """Refuse what sharded models cannot do.

    Raises:
        InvalidSettingError: If another setting contradicts ``training.sharding``.
    """
    if training.sharding not in {"none", "fsdp"}:
        raise InvalidSettingError("training.sharding", training.sharding, "none, fsdp")
    if training.reduce == "exact":
        raise InvalidSettingError("training.reduce", "exact with sharding: fsdp", "ddp, auto")
    if training.precision == "fp16":  # each rank would see only the infinities of its own shard
        raise InvalidSettingError("training.precision", "fp16 with sharding: fsdp", "bf16, fp32")
    if training.compile:
        raise InvalidSettingError("training.compile", "true with sharding: fsdp", "false")


def shard(
    model: nn.Module, group: Group, dtype: torch.dtype | None = None, *, takes_weights: bool = True
) -> None:
    """Shard a model's parameters among the ranks, in place, perhaps after taking those of rank 0.

    While the model runs, the elements of every `nn.Sequential` and `nn.ModuleList` are gathered one after the
    other, and the remaining parameters once. No rank ever holds the whole model on its device.

    Args:
        model: On the CPU.
        group: Of several ranks.
        dtype: In which weights are gathered, which halves what is sent and held; gradients are added in full
            precision all the same. Batch normalisation needs its weights in full: then all stay so.
        takes_weights: Those of rank 0; else a checkpoint replaces them.
    """
    assert group.device is not None  # noqa: S101 - a group of several ranks has one
    if takes_weights:
        group.broadcast([t for t in model.state_dict().values() if isinstance(t, Tensor)])
    needs_full = any(isinstance(module, _BatchNorm) for module in model.modules())
    policy = MixedPrecisionPolicy(
        None if needs_full else dtype, reduce_dtype=torch.float32 if dtype else None
    )
    mesh = init_device_mesh(group.device.type, (group.size,))
    lists = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    for part in reversed([child for parent in lists for child in parent.children()]):
        is_done = isinstance(part, FSDPModule | nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not is_done and any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to(group.device)  # buffers, and what is not sharded


def gather(tensor: Tensor, *, keep: bool) -> Tensor:
    """Return the whole tensor, or an empty one unless ``keep``. A collective operation if it is sharded."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if keep else torch.empty(0)


def is_part(owner: Tensor | None) -> bool:
    """Whether ranks hold parts of a tensor."""
    return isinstance(owner, DTensor)


def scatter(whole: Tensor, owner: Tensor | None) -> Tensor:
    """Return this rank's part of a tensor of rank 0, sharded as its owner is. A collective operation.

    Args:
        whole: On rank 0 the tensor, on the others an empty one of its shape and type; on their devices.
        owner: Whose parts they are.
    """
    assert isinstance(owner, DTensor)  # noqa: S101 - `is_part` has said so
    return distribute_tensor(whole, owner.device_mesh, owner.placements)


class ShardedSum:
    """A `reduction.Reduction` whose gradients FSDP itself adds after each backward pass.

    FSDP averages over the ranks; the factor `scale` on every loss turns the average into a sum.
    """

    shows_parts = False
    come_twice = False

    def __init__(self, group: Group, model: nn.Module) -> None:
        self.scale = float(group.size)
        self._group, self._parameters = group, list(model.parameters())
        self._sums: list[Tensor] = []
        self._flag, self._usage = Flag(group), Usage(group.device)
        self._fresh = True

    def begin(self) -> None:
        """Let the sharded gradients of the step's micro-batches accumulate; each backward pass sends its own.

        To send only their sum would be faster, but needs memory for the gradients of the whole model.
        """
        if self._fresh:
            self._fresh, self._sums = False, []
            for parameter in self._parameters:
                parameter.grad = None

    def listen(self, *, last: bool) -> None:
        """Do nothing: FSDP listens itself."""

    def add(self, values: Sequence[Tensor], weight: float, samples: int) -> Part:
        """Add the values as they are after this micro-batch. No rank has the whole gradient of a part."""
        self._sums = added(self._sums, values, weight)
        return NOTHING

    def finish(self, means: Sequence[Tensor], *, halt: bool) -> bool:
        """Add the values and the flag over the ranks; the gradients are added already."""
        self._fresh = True
        tail = Tail(self._sums, means, self._usage.flags([], halt=halt))
        for work in [self._group.start_sum(vector) for vector in tail.vectors]:
            self._group.finish(work)
        tail.deliver()
        return self._flag.raised(tail.flags)
