"""A loop without a prepared model: what it saves is its own, and comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parsl_rasda.errors import CheckpointError, DamagedCheckpointError, TrainingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime import Trial, local_trial
from parsl_rasda.runtime.attempt.attempt import PreemptRequested
from parsl_rasda.runtime.checkpoints.checkpoint import publish_checkpoint, read_header
from parsl_rasda.types import Outcome
from tests.unit.runtime.attempts import attempt_in


def counted(trial, *, path=None, epochs=9) -> int:
    """Count epochs; the count is all there is to save."""
    count = int(trial.checkpoint.read_text()) if trial.checkpoint else 0
    for _ in trial.epochs():
        count += 1
        if path is None:
            trial.report(val_loss=1.0, checkpoint=lambda place, n=count: place.write_text(str(n)))
        else:
            path.write_text(str(count))
            trial.report(val_loss=1.0, checkpoint=path)
        if count == epochs:
            break
    return count


@pytest.mark.parametrize("by", ["function", "file"])
def test_what_a_loop_saves_is_what_its_next_attempt_finds(tmp_path, by) -> None:
    path = None if by == "function" else tmp_path / "mine.txt"
    first = local_trial({}, epochs=2, directory=tmp_path / "first")
    assert first.checkpoint is None
    assert counted(first, path=path) == 2
    saved = first.history[-1].checkpoint.path
    second = local_trial({}, epochs=5, directory=tmp_path / "second", resume_from=saved)
    assert second.checkpoint.name == ("checkpoint" if by == "function" else "mine.txt")
    assert counted(second, path=path) == 5
    assert [report.epoch for report in second.history] == [3, 4, 5]
    assert path is None or not path.exists(), "it is moved, not copied"


def test_a_folder_is_kept_as_a_folder(tmp_path) -> None:
    trial = local_trial({}, epochs=1, directory=tmp_path / "first")
    for _ in trial.epochs():
        (tmp_path / "state" / "part").mkdir(parents=True)
        (tmp_path / "state" / "part" / "weights").write_text("w")
        trial.report(val_loss=1.0, checkpoint=str(tmp_path / "state"))
    saved = trial.history[-1].checkpoint.path
    again = local_trial({}, epochs=2, directory=tmp_path / "second", resume_from=saved)
    assert (again.checkpoint / "part" / "weights").read_text() == "w"


def test_our_own_way_to_load_a_model_says_that_it_cannot(tmp_path) -> None:
    from parsl_rasda.runtime import load_model

    trial = local_trial({}, epochs=1, directory=tmp_path)
    counted(trial)
    with pytest.raises(CheckpointError, match="load given/checkpoint by what wrote it"):
        load_model(trial.history[-1].checkpoint.path, None)


def test_a_function_is_called_only_when_a_checkpoint_is_due(tmp_path) -> None:
    calls = []

    def save(place: Path) -> None:
        calls.append(place.parts[-3].removesuffix(".tmp"))
        place.touch()

    trial = local_trial({}, epochs=5, directory=tmp_path, checkpoint_every=2)
    for _ in trial.epochs():
        trial.report(val_loss=1.0, checkpoint=save)
    assert calls == ["epoch-000002", "epoch-000004", "epoch-000005"]


def test_a_trial_that_is_told_to_leave_saves_what_was_not_due(tmp_path) -> None:
    attempt = attempt_in(tmp_path, training=Training(checkpoint_every=3))
    trial = Trial(attempt)
    for _ in trial.epochs():
        attempt.preempt("a test")
        trial.report(val_loss=1.0, checkpoint=lambda place: place.write_text("one"))
    assert attempt.outcome is Outcome.PREEMPTED
    assert (attempt.checkpoints[-1] / "given" / "checkpoint").read_text() == "one"


def test_a_checkpoint_that_is_due_must_be_given_once_there_was_one(tmp_path) -> None:
    trial = local_trial({}, epochs=2, directory=tmp_path)
    epochs = trial.epochs()
    next(epochs)
    trial.report(val_loss=1.0, checkpoint=lambda place: place.touch())
    next(epochs)
    with pytest.raises(TrainingError, match="due after 2 epochs"):
        trial.report(val_loss=1.0)


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    trial = local_trial({}, epochs=1, directory=tmp_path)
    next(trial.epochs())
    with pytest.raises(TrainingError, match="no such file or folder"):
        trial.report(val_loss=1.0, checkpoint=tmp_path / "nothing")
    assert not [*tmp_path.glob("epoch-*")]


def test_damage_is_seen_before_anything_is_loaded(tmp_path) -> None:
    first = local_trial({}, epochs=1, directory=tmp_path / "first")
    counted(first)
    saved = Path(first.history[-1].checkpoint.path)
    (saved / "given" / "checkpoint").write_text("7")
    second = local_trial({}, epochs=2, directory=tmp_path / "second", resume_from=saved)
    with pytest.raises(DamagedCheckpointError, match="is not what was written"):
        _ = second.checkpoint


def test_what_a_loop_gave_cannot_lie_outside_its_checkpoint(tmp_path) -> None:
    part = tmp_path / "epoch-000001.tmp"
    part.mkdir()
    header = {"epoch": 1, "step": 0, "replicas": 1, "seconds": 0.0, "given": "../../elsewhere"}
    (tmp_path / "elsewhere").touch()
    publish_checkpoint(part, tmp_path / "epoch-000001", header)
    trial = local_trial({}, epochs=2, directory=tmp_path / "new", resume_from=tmp_path / "epoch-000001")
    with pytest.raises(DamagedCheckpointError, match="leads out of"):
        _ = trial.checkpoint


def test_a_loop_leaves_between_two_steps_and_goes_on_after_them(tmp_path) -> None:
    attempt = attempt_in(tmp_path / "first", training=Training(batch_size=4))
    Path(attempt.directory).mkdir()
    trial = Trial(attempt)
    assert trial.join() == 1
    next(trial.epochs())
    trial.end_step(1, lambda place: place.write_text("1"), samples=24)
    attempt.preempt("a test")
    with pytest.raises(PreemptRequested):
        trial.end_step(2, lambda place: place.write_text("2"), samples=24)
    (saved,) = attempt.checkpoints
    assert (saved.name, read_header(saved)["step"]) == ("epoch-000000-step-00000002", 2)
    again = Trial(attempt_in(tmp_path, resume_from=str(saved), training=Training(batch_size=4)))
    assert (again.checkpoint.read_text(), again.step_done) == ("2", 2)
    smaller = Trial(attempt_in(tmp_path, resume_from=str(saved), training=Training(batch_size=2)))
    with pytest.raises(CheckpointError, match="batch size changed"):
        _ = smaller.checkpoint


def test_a_loop_that_cannot_go_on_leaves_between_two_epochs(tmp_path) -> None:
    attempt = attempt_in(tmp_path, training=Training(checkpoint_every=3))
    trial = Trial(attempt)
    epochs = trial.epochs()
    next(epochs)
    trial.report(val_loss=1.0)
    next(epochs)
    with pytest.raises(PreemptRequested):
        trial.leave("it cannot", lambda place: place.touch())
    assert attempt.preempt_cause == "it cannot"
    assert [path.name for path in attempt.checkpoints] == ["epoch-000001"]


def test_alone_a_trial_has_no_launch_around_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    import os

    local_trial({}, directory=tmp_path).join()
    assert not {"PMI_SIZE", "SLURM_NTASKS", "RANK", "LOCAL_RANK"} & os.environ.keys()


def test_the_rate_follows_the_rule_of_the_study(tmp_path) -> None:
    import torch

    trial = local_trial({}, replicas=4, directory=tmp_path, warmup_initial=1.0)
    assert trial.rate_factor(0.5, torch.optim.SGD) == 2.0
    assert trial.rate_factor(1.5, torch.optim.SGD) == 4.0
    assert trial.rate_factor(1.5, torch.optim.AdamW) == 2.0


def test_checkpoints_of_functions_that_save_nothing_are_none(tmp_path) -> None:
    trial = local_trial({}, epochs=1, directory=tmp_path / "first")
    for _ in trial.epochs():
        trial.report(val_loss=1.0)
    saved = Path(trial.history[-1].checkpoint.path)
    assert "given" not in json.loads((saved / "header.json").read_text())
    assert local_trial({}, epochs=2, directory=tmp_path / "second", resume_from=saved).checkpoint is None
