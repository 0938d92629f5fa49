"""What a sharded model cannot do is refused by the study file, and again on the ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn
from torch.distributed.fsdp import FSDPModule

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.sharding import check_sharding, shard
from parsl_rasda.study.training import TrainingSpec

REFUSED = [{"reduce": "exact"}, {"precision": "fp16"}, {"compile": True}]


@pytest.mark.parametrize("other", REFUSED)
def test_settings_that_contradict_sharding_are_refused_twice(other) -> None:
    with pytest.raises(InvalidSettingError):
        check_sharding(Training(sharding="fsdp", **other))
    with pytest.raises(ValidationError, match="with sharding: fsdp"):
        TrainingSpec.model_validate({"python": "a:b", "sharding": "fsdp", **other})


def test_an_unknown_way_of_sharding_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="none, fsdp"):
        check_sharding(Training(sharding="zero3"))


def test_what_the_study_says_reaches_the_ranks() -> None:
    spec = TrainingSpec.model_validate({"python": "a:b", "sharding": "fsdp", "reduce": "ddp"})
    check_sharding(spec.resolve({}))
    assert spec.resolve({}).sharding == "fsdp"


class _Alone:
    """A group of one rank, as far as sharding knows groups."""

    size, rank, device = 1, 0, torch.device("cpu")

    def broadcast(self, tensors):
        """Leave them: they are this rank's."""


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield _Alone()
    dist.destroy_process_group()


@pytest.mark.parametrize(("normalised", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_weights_are_gathered_in_bf16_and_gradients_added_in_fp32(alone, normalised, dtype) -> None:
    inner = nn.Sequential(nn.Linear(4, 4), *((nn.BatchNorm1d(4),) if normalised else ()))
    model = nn.Sequential(inner, nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 1))))
    seen = []
    inner[0].register_forward_hook(lambda module, *_: seen.append(module.weight.dtype))
    shard(model, alone, torch.bfloat16)
    assert [isinstance(m, FSDPModule) for m in (model, inner, inner[0], model[1][1], model[1][1][0])] == [
        *(True, False, True, False, True)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(8, 4)).float().mean().backward()
    assert seen == [dtype]
    assert (
        {p.grad.dtype for p in model.parameters()} == {p.dtype for p in model.parameters()} == {torch.float32}
    )
