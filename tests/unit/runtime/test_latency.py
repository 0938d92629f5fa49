"""What a forward pass takes, measured without a trace."""

from __future__ import annotations

import torch
from torch import nn

from parsl_rasda.runtime.latency import forward_seconds


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.frozen = nn.Linear(2, 2), nn.BatchNorm1d(2).eval()
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training or self.inner.training, torch.is_grad_enabled()))
        found: torch.Tensor = self.frozen(self.inner(x))
        return found


def test_a_model_is_timed_in_eval_mode_without_gradients_and_left_as_it_was() -> None:
    model = Watched()
    assert forward_seconds(model, torch.ones(3, 2)) > 0
    assert set(model.seen) == {(False, False)}
    assert len(model.seen) == 23, "three to warm up"
    assert (model.training, model.inner.training, model.frozen.training) == (True, True, False)
