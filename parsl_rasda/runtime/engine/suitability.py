"""What replicas cannot train with, refused in words where it is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn, strided
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from parsl_rasda.errors import TrainingError

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WRAPPERS = (DistributedDataParallel, DataParallel, FullyShardedDataParallel, FSDPModule)


def refuse_unfit_model(model: Any) -> None:
    """Refuse what is no model, is distributed already, or couples replicas.

    Raises:
        TrainingError: In words.
    """
    if not isinstance(model, nn.Module):
        raise TrainingError(
            f"The model is a {type(model).__name__}, not an nn.Module.", "Give trial.prepare one module."
        )
    wrapper = next((type(m).__name__ for m in model.modules() if isinstance(m, _WRAPPERS)), None)
    if wrapper is not None:
        raise TrainingError(
            f"The model is wrapped in {wrapper} already, whose gradients would be added twice.",
            "Give trial.prepare the plain model: it adds gradients, or shards the model, itself.",
        )
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise TrainingError(
            "The model has layers that get their shape from the first batch (LazyModules).",
            "Call model(example) once before trial.prepare(...).",
        )
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise TrainingError(
            "SyncBatchNorm couples replicas, which a rank that carries several cannot compute.",
            "Use BatchNorm: statistics are taken per replica and averaged into the running ones.",
        )
    sparse = (name for name, m in model.named_modules() if isinstance(m, _EMBEDDINGS) and m.sparse)
    if (name := next(sparse, None)) is not None:
        _refuse_sparse(f"of the embedding {name!r}")


def refuse_sparse_gradients(model: nn.Module) -> None:
    """Refuse gradients that only the rank which computed them could use.

    Raises:
        TrainingError: In words.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.layout is not strided:
            _refuse_sparse(f"of {name!r}")


def _refuse_sparse(what: str) -> None:
    raise TrainingError(
        f"The gradient {what} is sparse, which replicas on several ranks cannot add.",
        "Build it without sparse=True; use an optimizer for dense gradients.",
    )


def refuse_unfit_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimizer, or asks for the loss again and again.

    Raises:
        TrainingError: In words.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(
            f"The optimizer is a {name}, not a torch.optim.Optimizer.",
            "Give trial.prepare what makes one from (parameters, lr), such as torch.optim.SGD.",
        )
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TrainingError(
            f"{name} computes the loss several times a step (it needs a closure), which replicas cannot.",
            "Use an optimizer whose step() needs no closure.",
        )


def refuse_kept_gradients(optimizer: Optimizer, grads: Sequence[Tensor]) -> None:
    """Refuse an optimizer that has kept gradients themselves: on several ranks the next step overwrites them.

    Args:
        optimizer: Has made a step.
        grads: Those of the step. All are alive, so that nothing else lies where they lie.

    Raises:
        TrainingError: In words.
    """
    places = {grad.untyped_storage().data_ptr() for grad in grads if type(grad) is Tensor and grad.numel()}
    for state in optimizer.state.values():
        for key, value in state.items():
            if type(value) is Tensor and value.untyped_storage().data_ptr() in places:
                raise TrainingError(
                    f"{type(optimizer).__name__} keeps the gradient itself as {key!r}, which the next step "
                    "overwrites if there are several ranks.",
                    "Use an optimizer that copies what it keeps: p.grad.clone().",
                )


def refuse_unfit_loss(loss: Any) -> None:
    """Refuse what is not the mean loss of a batch, with its gradient.

    Raises:
        TrainingError: In words.
    """
    advice = "Give trial.step the mean over the batch, as a tensor that the model has computed."
    if not isinstance(loss, Tensor):
        what = "None" if loss is None else f"a {type(loss).__name__}"
        raise TrainingError(f"The loss is {what}, not a tensor.", advice)
    if loss.dim():
        raise TrainingError(f"The loss has shape {tuple(loss.shape)}.", advice)
    if not loss.requires_grad:
        raise TrainingError("The loss has no gradient: it was detached, or computed under no_grad.", advice)


def trained_parameters(model: nn.Module, of_optimizer: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters whose gradients are added, with those that the user may unfreeze later.

    Raises:
        TrainingError: If the optimizer has others.
    """
    held = set(of_optimizer)
    if strays := held - set(model.parameters()):
        raise TrainingError(
            f"The optimizer has {len(strays)} parameters that are not of the model.",
            "Make them part of the module that trial.prepare is given.",
        )
    return [p for p in model.parameters() if p.requires_grad or p in held]
