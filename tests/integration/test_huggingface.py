"""A Trainer of Hugging Face's, tuned: real ones, in this process and on two ranks. Nothing is downloaded."""

from __future__ import annotations

import pytest
import trainer_cases
import trainer_functions

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of their libraries, about each other


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_an_interrupted_trial_goes_on_at_its_next_step(tmp_path) -> None:
    trainer_cases.check_that_an_interrupted_trial_goes_on_at_its_next_step(
        tmp_path, trainer_functions.train_huggingface, metric="eval_loss"
    )


def test_where_the_replicas_grow_another_attempt_goes_on_at_once(tmp_path) -> None:
    """The Trainer has counted its steps for other replicas when it began."""
    grows = trainer_cases.Controller({"op": "go", "until": 2, "replicas": 2})
    options = {"metric": "eval_loss", "interactive": True}
    first, has_left = trainer_cases.trained_alone(
        tmp_path / "first",
        trainer_functions.train_huggingface,
        until=1,
        schedule=((0, 1),),
        channel=grows,
        **options,
    )
    assert has_left
    assert [path.name for path in first.checkpoints] == ["epoch-000001"]
    second, _ = trainer_cases.trained_alone(
        tmp_path / "second",
        trainer_functions.train_huggingface,
        epoch=1,
        until=2,
        schedule=((0, 1), (1, 2)),
        resume_from=str(first.checkpoints[0]),
        channel=trainer_cases.Controller({"op": "leave"}),
        **options,
    )
    assert [report.epoch for report in second.history] == [2]
    lines = trainer_cases.seen_by(tmp_path / "second")["seen-0"]
    assert [(epoch, replicas) for epoch, replicas, _ in lines] == [(1, 2)] * 16


def test_a_loop_that_stops_by_itself_completes_its_trial(tmp_path) -> None:
    trainer_cases.check_that_a_loop_that_stops_by_itself_completes_its_trial(
        tmp_path, trainer_functions.train_huggingface, metric="eval_loss"
    )


@pytest.mark.parsl
@pytest.mark.mpi
def test_a_study_widens_is_interrupted_and_resumes(tmp_path) -> None:
    trainer_cases.check_that_a_study_widens_is_interrupted_and_resumes(
        tmp_path, "train_huggingface", "eval_loss"
    )
