"""How ``model(x)`` is computed: in which precision, and whether compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import new_class
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Forward: TypeAlias = Callable[..., Any]  # takes the module, then the arguments of its forward

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = 64  # compiled separately; beyond its limit torch silently stops compiling


def run_in_precision(model: nn.Module, device_type: str, dtype: torch.dtype | None) -> None:
    """Let ``model(x)`` compute in a lower precision and return full precision, in which losses are safe."""
    if dtype is None:
        return

    def in_precision(forward: Forward) -> Forward:
        def wrapped(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast(device_type, dtype):
                return _full(forward(module, *args, **kwargs))

        return wrapped

    _replace_forward(model, in_precision)


def compile_forward(model: nn.Module) -> None:
    """Compile ``model(x)``, with a graph for each shape.

    One graph for several shapes may round differently, and the shapes that a rank meets first depend on its
    replicas. The function in between is needed because torch skips its own containers: an `nn.Sequential`
    that is compiled in place is not compiled at all.

    torch keeps compiled code on the node's disk, so that a restart finds it again.
    """
    torch._dynamo.config.recompile_limit = SHAPES

    def compiled(forward: Forward) -> Forward:
        def traced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return forward(module, *args, **kwargs)

        return torch.compile(traced, dynamic=False)

    _replace_forward(model, compiled)


def warn_if_nothing_compiled(model: nn.Module) -> None:
    """Warn if torch has found nothing in the model that it can compile."""
    from torch._dynamo.utils import counters

    if not counters["stats"]["unique_graphs"]:
        warnings.warn(f"training.compile: torch compiled nothing of {type(model).__name__}", stacklevel=2)


def _replace_forward(model: nn.Module, wrapped: Callable[[Forward], Forward]) -> None:
    """Give a model its own class with another `forward`.

    A method on the model itself would be copied with the model, and the copy would compute with the weights
    of the original: averages of weights (`torch.optim.swa_utils.AveragedModel`) are copies.
    """
    kind = type(model)
    forward: Forward = kind.forward
    patch = vars(model).pop("forward", None)  # the user's; it is bound already
    if patch is not None:

        def forward(_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return patch(*args, **kwargs)

    body = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    body["forward"] = wrapped(forward)
    model.__class__ = new_class(kind.__name__, (kind,), exec_body=lambda names: names.update(body))


def _full(value: Any) -> Any:
    match value:
        case Tensor():
            return value.float() if value.is_floating_point() else value
        case dict():
            return {key: _full(part) for key, part in value.items()}
        case tuple() | list() if not hasattr(value, "_fields"):
            return type(value)(_full(part) for part in value)
        case _:
            return value
