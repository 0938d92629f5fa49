"""What a sharded model cannot do is refused by the study file, and again on the ranks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.sharding import check_sharding
from parsl_rasda.study.tuning import TrainingSpec

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
