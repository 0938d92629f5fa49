"""A plain loop with Accelerate, tuned: real ones, in this process and on two ranks."""

from __future__ import annotations

import pytest
import trainer_cases
import trainer_functions

pytest.importorskip("accelerate")

from parsl_rasda.errors import TrainingError
from parsl_rasda.integrations.accelerate import TrialAccelerator, loader_for
from parsl_rasda.runtime import local_trial

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of their libraries, about each other


def test_an_interrupted_trial_goes_on_at_its_next_step(tmp_path) -> None:
    trainer_cases.check_that_an_interrupted_trial_goes_on_at_its_next_step(
        tmp_path, trainer_functions.train_accelerate
    )


def test_a_rung_is_crossed_alive_with_twice_the_replicas(tmp_path) -> None:
    trainer_cases.check_that_a_rung_is_crossed_alive(tmp_path, trainer_functions.train_accelerate)


def test_a_loop_that_does_not_accumulate_is_told(tmp_path) -> None:
    trial = local_trial({}, replicas=2, batch_size=8, directory=tmp_path)
    accelerator = TrialAccelerator(trial)
    plane = trainer_functions.nn.Linear(3, 1)
    optimizer = trainer_functions.torch.optim.SGD(plane.parameters(), lr=0.1)
    loader = loader_for(trial, trainer_functions.points())
    plane, optimizer, loader = accelerator.prepare(plane, optimizer, loader)

    def train() -> None:
        for _ in accelerator.epochs():
            for _, x, y in loader:
                accelerator.backward((plane(x) - y).square().mean())
                optimizer.step()

    with pytest.raises(TrainingError, match="updated the weights 2 times"):
        train()


def test_a_loop_that_stops_by_itself_completes_its_trial(tmp_path) -> None:
    trainer_cases.check_that_a_loop_that_stops_by_itself_completes_its_trial(
        tmp_path, trainer_functions.train_accelerate
    )


@pytest.mark.parsl
@pytest.mark.mpi
def test_a_study_widens_is_interrupted_and_resumes(tmp_path) -> None:
    trainer_cases.check_that_a_study_widens_is_interrupted_and_resumes(
        tmp_path, "train_accelerate", "val_loss"
    )
