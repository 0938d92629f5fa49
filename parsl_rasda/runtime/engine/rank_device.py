"""The device of a rank, and what must be the same on all of them for results to be."""

from __future__ import annotations

import os

import torch

from parsl_rasda.errors import TrainingError
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.engine.group import BACKEND_VARIABLE
from parsl_rasda.runtime.engine.seeding import fix_threads

TYPES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "cpu": "cpu", "none": "cpu"}


def own_device(order: JobSpec, index: int) -> torch.device:
    """Return this rank's device, made current.

    Raises:
        TrainingError: If torch does not see it.
    """
    kind = TYPES[order.accelerator]
    fix_threads(torch)
    if kind == "cpu":
        return torch.device("cpu")
    module = torch.get_device_module(kind)
    if os.environ.get(BACKEND_VARIABLE) == "gloo" and module.is_available():
        index %= module.device_count()  # ranks may share
    if not module.is_available() or module.device_count() <= index:
        raise TrainingError(
            f"The site says `accelerator: {order.accelerator}`, but torch {torch.__version__} sees "
            f"{module.device_count()} such devices and this rank needs number {index}.",
            "Install a torch built for it, or correct `accelerator` or `gpus_per_node` in the site file.",
        )
    module.set_device(index)
    if order.training.reduce != "ddp":
        make_deterministic(is_demanded=order.training.reduce == "exact")
    return torch.device(kind, index)


def make_deterministic(*, is_demanded: bool) -> None:
    """Let kernels give the same bits each time.

    Args:
        is_demanded: Whether those that cannot are errors, rather than warned of.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first handle is made
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=not is_demanded)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time
