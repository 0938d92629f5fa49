"""A module of Lightning's, tuned: real Trainers, in this process and on two ranks."""

from __future__ import annotations

import pytest
import trainer_cases
import trainer_functions

pytest.importorskip("lightning")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of their libraries, about each other


def test_an_interrupted_trial_goes_on_at_its_next_step(tmp_path) -> None:
    trainer_cases.check_that_an_interrupted_trial_goes_on_at_its_next_step(
        tmp_path, trainer_functions.train_lightning
    )


def test_a_rung_is_crossed_alive_with_twice_the_replicas(tmp_path) -> None:
    trainer_cases.check_that_a_rung_is_crossed_alive(tmp_path, trainer_functions.train_lightning)


def test_a_loop_that_stops_by_itself_completes_its_trial(tmp_path) -> None:
    trainer_cases.check_that_a_loop_that_stops_by_itself_completes_its_trial(
        tmp_path, trainer_functions.train_lightning
    )


@pytest.mark.parsl
@pytest.mark.mpi
def test_a_study_widens_is_interrupted_and_resumes(tmp_path) -> None:
    trainer_cases.check_that_a_study_widens_is_interrupted_and_resumes(
        tmp_path, "train_lightning", "val_loss"
    )
