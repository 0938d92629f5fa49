"""How long a model takes to answer: what those who use a surrogate pay for each prediction."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_WARM_UPS, _PASSES = 3, 20


def forward_seconds(model: nn.Module, example: Any) -> float:  # whatever the model takes
    """Return the median time of a forward pass without gradients [s]; modes are left as they were."""
    import torch

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    taken_s = []
    model.eval()
    try:
        with torch.no_grad():
            for _ in range(_WARM_UPS + _PASSES):
                _wait_for(device)
                began = time.perf_counter()
                model(example)
                _wait_for(device)
                taken_s.append(time.perf_counter() - began)
    finally:
        for module, mode in modes:
            module.training = mode
    return statistics.median(taken_s[_WARM_UPS:])


def _wait_for(device: Any) -> None:  # a torch.device
    if device.type != "cpu":
        import torch

        torch.get_device_module(device).synchronize(device)
