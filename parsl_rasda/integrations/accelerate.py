"""Trials trained by a plain loop with Accelerate.

::

    def train(trial):
        accelerator = TrialAccelerator(trial)
        loader = loader_for(trial, train_set)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for epoch in accelerator.epochs():
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(loss_fn(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
            accelerator.report(val_loss=...)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.scheduler import AcceleratedScheduler

from parsl_rasda.errors import TrainingError
from parsl_rasda.integrations.loop import ReplicaBatches, TrainerLoop, loader_for, loop_of, refuse
from parsl_rasda.runtime import Trial

__all__ = ["TrialAccelerator", "loader_for"]

_OURS = {"cpu", "gradient_accumulation_steps", "gradient_accumulation_plugin"}


class TrialAccelerator(Accelerator):  # type: ignore[misc] # mypy skips the library
    """An Accelerator for a trial, on its ranks and their devices, which resumes where the trial was."""

    def __init__(self, trial: Trial, **options: Any) -> None:
        """Let the ranks meet.

        Args:
            trial: The trial.
            options: As for ``Accelerator``: precision, plug-ins.

        Raises:
            TrainingError: If an option is the trial's to decide.
        """
        refuse("TrialAccelerator", _OURS & options.keys())
        self._trial_loop: TrainerLoop = loop_of(trial)
        super().__init__(
            cpu=trial.device.type == "cpu",
            gradient_accumulation_steps=self._trial_loop.accumulated,
            **options,
        )

    def epochs(self) -> Iterator[int]:
        """Yield the epochs to train, once everything is prepared; the first of them from where the trial was.

        Raises:
            TrainingError: If an epoch ends without `report`.
        """
        loop, trial = self._trial_loop, self._trial_loop.trial
        if loop.checkpoint is not None:
            self.load_state(str(loop.checkpoint))
        for optimizer in self._optimizers:
            loop.scale_rates(optimizer.optimizer)
        loop.begin()
        while loop.goes_on:
            self.gradient_accumulation_steps, self.step = loop.accumulated, 0
            epoch = trial.epoch
            yield epoch
            if trial.epoch == epoch:
                raise TrainingError(
                    f"Epoch {epoch} ended without accelerator.report(...).",
                    "Call it once an epoch, on every rank.",
                )
            loop.decide()

    def report(self, **metrics: float) -> None:
        """End the epoch with its metrics; of the study's, the mean over the ranks counts.

        Raises:
            TrainingError: If the study's metric is missing.
        """
        self._trial_loop.report(metrics, self._save)

    def prepare_data_loader(self, data_loader: Any, *arguments: Any, **options: Any) -> Any:
        """Return a loader as Accelerate does; one of the trial's is shared out already, and has its steps."""
        if not isinstance(getattr(data_loader, "batch_sampler", None), ReplicaBatches):
            return super().prepare_data_loader(data_loader, *arguments, **options)
        whole = prepare_data_loader(
            data_loader, self.device, num_processes=1, process_index=0, put_on_device=self.device_placement
        )
        return StepLoader(whole, self)

    def prepare_scheduler(self, scheduler: Any) -> Any:
        """Return a scheduler that goes on once an update, at any number of ranks."""
        prepared = super().prepare_scheduler(scheduler)
        if isinstance(prepared, AcceleratedScheduler):
            prepared.split_batches = True  # else it takes as many steps at once as there are ranks
        return prepared

    def end_step(self) -> None:
        """Leave after a step if the trial must; called by its loader.

        Raises:
            TrainingError: If the weights were updated more than once, for want of accumulation.
        """
        loop = self._trial_loop
        if loop.updates > len(self._optimizers):
            raise TrainingError(
                f"A step of {loop.accumulated} micro-batches has updated the weights {loop.updates} times.",
                "Write `with accelerator.accumulate(model):` around loss, backward and step.",
            )
        loop.end_step(self._save)

    def _save(self, path: Path) -> None:
        self.save_state(str(path))


class StepLoader:
    """The trial's loader, which knows when a step is done: when the next batch is asked for."""

    def __init__(self, loader: Any, accelerator: TrialAccelerator) -> None:
        """Wrap a loader of one process."""
        self._loader, self._accelerator = loader, accelerator

    def __len__(self) -> int:
        """Return the number of micro-batches of this rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield the micro-batches, on the device."""
        each = self._accelerator.gradient_accumulation_steps
        for number, batch in enumerate(self._loader, 1):
            yield batch
            if number % each == 0:
                self._accelerator.end_step()
