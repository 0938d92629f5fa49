from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.runtime import local_trial
from parsl_rasda.study import load_site, load_study
from workflows.emulated.train import EXIT_STATUS, FAULTS, EmulatedFaultError, epoch_time_s, loss, train

HERE = Path(__file__).parents[3] / "workflows"
configs = st.fixed_dictionaries({"lr": st.floats(1e-4, 1e-1), "depth": st.integers(2, 8)})


@dataclass
class FakeTrial:
    """A trial in an attempt's directory; `leave` is called where a process would end."""

    directory: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=lambda: {"epoch_s": 0.0, "seed": 3})
    world_size: int = 1
    reported: list[float] = field(default_factory=list)

    def epochs(self) -> Iterator[int]:
        yield from range(4)

    def report(self, *, val_loss: float) -> None:
        self.reported.append(val_loss)


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[int], Path]:
    return lambda number: tmp_path / f"attempt-{number}" / "scratch"


def test_a_trial_reports_its_curve_through_the_real_trial(tmp_path: Path) -> None:
    trial = local_trial({"lr": 0.01}, inputs={"epoch_s": 0.0, "seed": 3}, epochs=3, directory=tmp_path)
    train(trial)
    assert [h.metrics["val_loss"] for h in trial.history] == [
        loss({"lr": 0.01}, e, seed=3) for e in (1, 2, 3)
    ]


@given(config=configs, seed=st.integers(0, 99))
def test_losses_are_a_pure_function_that_falls(config: dict[str, Any], seed: int) -> None:
    curve = [loss(config, epochs, seed=seed) for epochs in range(1, 9)]
    assert curve == [loss(dict(config), epochs, seed=seed) for epochs in range(1, 9)]
    assert curve[-1] < curve[0]
    assert all(0 < value < 1.01 for value in curve)
    assert curve != [loss(config, epochs, seed=seed + 1) for epochs in range(1, 9)]


def test_a_rate_far_from_the_best_one_always_ends_worse() -> None:
    for depth in range(2, 9):
        near, far = ({"lr": lr, "depth": depth} for lr in (1e-2, 1e-4))
        assert loss(near, 30, seed=0) < loss(far, 30, seed=0)


@given(config=configs, doublings=st.integers(0, 10), efficiency=st.floats(0.5, 1.0))
def test_each_doubling_of_the_slots_is_twice_the_efficiency_faster(
    config: dict[str, Any], doublings: int, efficiency: float
) -> None:
    def seconds(world_size: int, spread: float = 0.0) -> float:
        return epoch_time_s(config, world_size, epoch_s=3.0, efficiency=efficiency, spread=spread, seed=1)

    assert seconds(1) == 3.0
    assert seconds(2**doublings) == pytest.approx(3.0 / (2 * efficiency) ** doublings)
    assert 3.0 * 0.7 <= seconds(1, spread=0.3) <= 3.0 * 1.3


@pytest.mark.parametrize(
    ("key", "value"), [("epoch_s", -1.0), ("efficiency", 0.0), ("efficiency", 1.1), ("spread", 1.0)]
)
def test_a_time_that_cannot_be_is_refused(key: str, value: float) -> None:
    settings = {"epoch_s": 1.0, "efficiency": 0.9, "spread": 0.0, key: value}
    with pytest.raises(InvalidSettingError, match=key):
        epoch_time_s({}, 2, seed=0, **settings)


def test_a_fault_happens_in_its_epoch(attempt: Callable[[int], Path]) -> None:
    trial = FakeTrial(attempt(1), {"fault": "raise", "fault_epoch": 2})
    with pytest.raises(EmulatedFaultError):
        train(trial)
    assert len(trial.reported) == 2


def test_a_diverging_trial_reports_nan_from_its_epoch_on(attempt: Callable[[int], Path]) -> None:
    trial = FakeTrial(attempt(1), {"fault": "nan", "fault_epoch": 2})
    train(trial)
    assert [math.isnan(value) for value in trial.reported] == [False, False, True, True]


def test_a_fault_of_the_first_attempts_spares_the_later_ones(attempt: Callable[[int], Path]) -> None:
    config = {"fault": "raise", "fault_epoch": 0, "fault_attempts": 2}
    for number in (1, 2):
        with pytest.raises(EmulatedFaultError):
            train(FakeTrial(attempt(number), config))
    spared = FakeTrial(attempt(3), config)
    train(spared)
    assert len(spared.reported) == 4


@pytest.mark.parametrize(("fault", "status"), [("signal", -signal.SIGKILL), ("exit", EXIT_STATUS)])
def test_a_fault_ends_the_process_as_it_says(fault: str, status: int) -> None:
    code = f"from workflows.emulated.train import misbehave; misbehave({fault!r})"
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=HERE.parent, timeout=60)
    assert ended.returncode == status


def test_a_fault_that_does_not_exist_is_refused(attempt: Callable[[int], Path]) -> None:
    with pytest.raises(InvalidSettingError, match=", ".join(FAULTS)):
        train(FakeTrial(attempt(1), {"fault": "explode"}))


def test_emulated_training_never_imports_torch() -> None:
    code = "import sys, workflows.emulated.train; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent, timeout=60)


def test_the_emulated_study_is_valid() -> None:
    tune = load_study(HERE / "emulated" / "study.yaml").tune_stages["tune"].tune
    assert (tune.num_samples, tune.scheduler.max_t, tune.scheduler.max_workers) == (16, 8, 8)


def test_the_emulated_site_has_16_logical_slots() -> None:
    site = load_site(HERE / "emulated" / "site.yaml")
    assert (site.slots, site.accelerator, site.mpi_launcher) == (16, "none", "process")
