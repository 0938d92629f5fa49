"""The device of a rank."""

from __future__ import annotations

import os

import torch

from parsl_rasda.devices import BACKEND_VARIABLE
from parsl_rasda.errors import TrainingError
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.engine.seeding import fix_threads

TYPES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "cpu": "cpu", "none": "cpu"}


class DeviceMissingError(TrainingError):
    """A rank has no device: the site has fewer than it says, or torch sees none of them."""


def own_device(spec: JobSpec, index: int) -> torch.device:
    """Return this rank's device, made current.

    Raises:
        DeviceMissingError: If torch does not see it.
    """
    kind = TYPES[spec.accelerator]
    fix_threads(torch)
    if kind == "cpu":
        return torch.device("cpu")
    module = torch.get_device_module(kind)
    if os.environ.get(BACKEND_VARIABLE) == "gloo" and module.is_available():
        index %= module.device_count()  # ranks may share a GPU
    if not module.is_available() or module.device_count() <= index:
        raise DeviceMissingError(
            f"The site says `accelerator: {spec.accelerator}`, but torch {torch.__version__} sees "
            f"{module.device_count()} such devices and this rank needs number {index}.",
            "Install a torch built for it, or correct `accelerator` or `gpus_per_node` in the site file.",
        )
    module.set_device(index)
    if spec.training.reduce != "ddp" and spec.training.sharding == "none":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first handle
    return torch.device(kind, index)


def device_name(device: torch.device) -> str:
    """Return the model of a device, by which its bits may differ; empty for a CPU."""
    if device.type == "cpu":
        return ""
    return str(torch.get_device_module(device).get_device_name(device))
