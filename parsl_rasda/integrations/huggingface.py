"""Trials trained by the Trainer of Hugging Face's transformers.

::

    def train(trial):
        args = arguments_for(trial, learning_rate=trial.config["lr"])
        trainer = Trainer(model, args, train_dataset=train_set, eval_dataset=val_set)
        train_with(trial, trainer)

The Trainer evaluates after each epoch, and what it finds is reported: the study's metric is ``eval_loss``, or
``eval_...`` of what ``compute_metrics`` returns.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from parsl_rasda.errors import TrainingError
from parsl_rasda.integrations.loop import loop_of, refuse
from parsl_rasda.runtime import Trial

__all__ = ["RasdaCallback", "arguments_for", "train_with"]

_STATE = "trainer_state.json"
_OURS = {
    "output_dir",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "max_steps",
    "use_cpu",
    "eval_strategy",
    "save_strategy",
    "ignore_data_skip",
    "auto_find_batch_size",
}


def arguments_for(trial: Trial, **options: Any) -> TrainingArguments:
    """Return the arguments of a Trainer for a trial, on its ranks and their devices.

    Args:
        trial: The trial.
        options: As for ``TrainingArguments``: the rate, its schedule, precision, workers, logging.

    Raises:
        TrainingError: If an option is the trial's to decide.
    """
    refuse("arguments_for", _OURS & options.keys())
    loop = loop_of(trial)
    own: dict[str, Any] = {
        "num_train_epochs": trial.max_epochs,
        "seed": trial.seed % 2**32,
        "logging_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(
        **own
        | options
        | {
            "output_dir": str(trial.directory),
            "gradient_accumulation_steps": loop.accumulated,
            "per_device_train_batch_size": trial.global_batch_size // trial.replicas,
            "use_cpu": trial.device.type == "cpu",
            "eval_strategy": "epoch",
            "save_strategy": "no",  # the callback saves when a checkpoint is due
        }
    )


def train_with(trial: Trial, trainer: Trainer) -> None:
    """Train by a Trainer that has the trial's arguments, from where the trial was.

    Args:
        trial: The trial.
        trainer: With a training set and an evaluation set.

    Raises:
        TrainingError: If it has other arguments than those of `arguments_for`, or no evaluation set.
    """
    loop = loop_of(trial)
    if Path(str(trainer.args.output_dir)) != trial.directory:
        raise TrainingError(
            "The Trainer has arguments of its own.", "Give it those of arguments_for(trial, ...)."
        )
    if trainer.eval_dataset is None:
        raise TrainingError("The Trainer has no eval_dataset, so there is nothing to report.", "Give it one.")
    loader = loop.loader(trainer.get_train_dataloader(), skips=False)  # the Trainer skips what is done
    trainer.get_train_dataloader = lambda: loader
    trainer.add_callback(RasdaCallback(trial, trainer))
    resumed = (
        None if loop.checkpoint is None else _as_of_now(trial, loop.checkpoint, loop.own_batches.plan.steps)
    )
    trainer.train(resume_from_checkpoint=resumed)


class RasdaCallback(TrainerCallback):  # type: ignore[misc] # mypy skips the library
    """Reports each epoch to the study, and stops, saves and scales as it says; the last in the list."""

    def __init__(self, trial: Trial, trainer: Trainer) -> None:
        """Belong to one trial and its Trainer."""
        self._loop, self._trainer = loop_of(trial), trainer
        self._ends_epoch = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the trial's first epoch."""
        self._loop.scale_rates(_inner(kwargs["optimizer"], "optimizer"))
        schedule = _inner(kwargs["lr_scheduler"], "scheduler")
        if isinstance(schedule, LambdaLR) and state.global_step:  # an epoch may have other steps than before
            schedule.last_epoch = state.global_step - 1
            schedule.step()
        self._loop.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave after a step if the trial must."""
        self._loop.end_step(self._save)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Let the Trainer evaluate."""
        control.should_evaluate = self._ends_epoch = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any],
        **_: Any,
    ) -> None:
        """Report the epoch; stop the Trainer unless there is another."""
        if not self._ends_epoch:
            return
        self._ends_epoch = False
        values = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        ends = control.should_training_stop
        before = self._loop.accumulated
        if not self._loop.end_epoch(values, self._save, is_last=ends):
            control.should_training_stop = True
        elif self._loop.accumulated != before:
            self._loop.leave(f"its Trainer counts steps of {before} micro-batches a rank", self._save)

    def _save(self, path: Path) -> None:
        trainer = self._trainer
        trainer._save_checkpoint(trainer.model, None)  # the only way to save what it resumes from
        trainer.accelerator.wait_for_everyone()
        if trainer.accelerator.is_main_process:
            shutil.move(Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}", path)


def _as_of_now(trial: Trial, checkpoint: Path, steps: int) -> str:
    """Return a folder to resume from, with the step that it would have if all epochs were as this one."""
    folder = trial.directory / f"resumed-{trial.rank}"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.name != _STATE:
            (folder / file.name).symlink_to(file)
    state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    state["global_step"] = trial.epoch * steps + trial.step_done
    (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
    return str(folder)


def _inner(wrapped: Any, name: str) -> Any:
    """Return torch's own object, without Accelerate's wrapper."""
    return getattr(wrapped, name, wrapped)
