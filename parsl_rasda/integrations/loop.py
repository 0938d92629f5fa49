"""A trial from the hooks of a training loop that is not ours: its epochs, its batches and its learning rate.

The loop believes that it trains from the beginning to the end. What it is given at an epoch's begin depends
on the trial: how many micro-batches a rank accumulates, which samples they have, and which are done already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime import Trial
from parsl_rasda.runtime.engine.datasets import Samples, seed_everything
from parsl_rasda.runtime.engine.replicas import EpochPlan, carried, seed_of
from parsl_rasda.runtime.own_loop import Save

_KEPT = ("num_workers", "collate_fn", "pin_memory", "worker_init_fn", "multiprocessing_context")


class FilledPlan(EpochPlan):
    """As for our own loop, but each replica has samples in each step: 2 where its share is 1, if need be."""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return min(super().steps, self.samples // self.replicas)


class ReplicaBatches(Sampler[list[int]]):
    """The micro-batches of this rank's replicas in the trial's current epoch, as a ``batch_sampler``.

    Each sample comes once an epoch, at any number of ranks; the order is that of `Trial.batches`. All steps
    have as many micro-batches as the rank carries replicas, and those differ by few samples. Steps that are
    done already are left out.
    """

    def __init__(self, trial: Trial, ranks: int, samples: Samples, *, skips: bool = True) -> None:
        """Begin at the trial's epoch, whatever that is when the batches are asked for.

        Args:
            trial: The trial.
            ranks: Number of processes that train together.
            samples: The training set.
            skips: Whether to leave out the steps that are done already.
        """
        self._trial, self._ranks, self._samples, self._skips = trial, ranks, samples, skips

    @property
    def plan(self) -> EpochPlan:
        """The current epoch's steps.

        Raises:
            TrainingError: If there are fewer samples than replicas.
        """
        trial, count = self._trial, len(self._samples)
        if count < trial.replicas:
            raise TrainingError(
                f"{count} samples are too few for {trial.replicas} replicas.",
                "Use more samples, or a smaller `scheduler.max_workers`.",
            )
        return FilledPlan(count, trial.replicas, trial.global_batch_size // trial.replicas)

    @property
    def _mine(self) -> range:
        rank = self._trial.rank if self._ranks > 1 else 0
        return carried(rank, self._ranks, self._trial.replicas)

    @property
    def _first(self) -> int:
        return self._trial.step_done if self._skips else 0

    def __len__(self) -> int:
        """Return the number of micro-batches of this rank."""
        return (self.plan.steps - self._first) * len(self._mine)

    def __iter__(self) -> Iterator[list[int]]:
        """Return the samples of each, as the trial stands now, even if they are read later."""
        trial, plan, mine = self._trial, self.plan, self._mine
        order = self._samples.order(trial.seed, trial.epoch)
        parts = (part for step in range(self._first, plan.steps) for part in plan.own(step, mine))
        return ([int(n) for n in order[part.begin : part.begin + part.size]] for part in parts)


def refuse(function: str, taken: Collection[str]) -> None:
    """Refuse the options of a function that are the trial's to decide, if there are any.

    Raises:
        TrainingError: With their names.
    """
    if taken:
        found = f"{function} got {', '.join(sorted(taken))}, which follows from the trial."
        raise TrainingError(found, "Leave it out.")


class TrainerLoop:
    """One trial in one training loop.

    Attributes:
        trial: The trial.
        ranks: Number of processes that train together.
        checkpoint: What the last attempt has saved, or None.
        batches: The training set's, once `loader` was called.
        goes_on: Whether there is another epoch to train.
        updates: How often an optimizer has updated the weights in the current step.
    """

    def __init__(self, trial: Trial) -> None:
        """Let the ranks meet."""
        self.trial = trial
        self.ranks = trial.join()
        self.checkpoint: Path | None = trial.checkpoint
        self.batches: ReplicaBatches | None = None
        self.goes_on = True
        self.updates = 0
        self._epochs = trial.epochs()
        self._has_begun = False
        self._step = trial.step_done

    @property
    def accumulated(self) -> int:
        """Micro-batches of a step on this rank.

        Raises:
            TrainingError: If the ranks cannot share the replicas.
        """
        return len(carried(0, self.ranks, self.trial.replicas))

    def loader(self, dataset: Any, *, skips: bool = True, **options: Any) -> DataLoader[Any]:
        """Return the loader of the training set, which gives this rank its replicas' micro-batches.

        Args:
            dataset: A map-style data set, or a ``DataLoader`` of one, whose workers and collation are kept.
            skips: Whether to leave out the steps that are done already; a Trainer may do so by itself.
            options: As for ``DataLoader``; the batches are the trial's.

        Raises:
            TrainingError: If its samples are not numbered.
        """
        if isinstance(dataset, DataLoader):
            options = {**{name: getattr(dataset, name) for name in _KEPT}, **options}
            dataset = dataset.dataset
        self.batches = ReplicaBatches(self.trial, self.ranks, Samples(dataset), skips=skips)
        return DataLoader(dataset, batch_sampler=self.batches, **options)

    @property
    def own_batches(self) -> ReplicaBatches:
        """The training set's batches.

        Raises:
            TrainingError: If the loop trains on others.
        """
        if self.batches is None:
            raise TrainingError(
                "The training set is not read by the trial's loader: ranks would train on the same samples.",
                "Give the Trainer loader_for(trial, dataset).",
            )
        return self.batches

    def begin(self) -> None:
        """Begin the first epoch, once."""
        if not self._has_begun:
            self._has_begun = True
            self.goes_on = next(self._epochs, None) is not None
            self._seed()

    def scale_rates(self, optimizer: Optimizer) -> None:
        """Let each update use the study's factor on the rate, on top of what torch's schedulers set."""
        before: list[Any] = []

        def scale(*_: Any) -> None:
            position = self.trial.epoch + (self._step + 0.5) / self.own_batches.plan.steps
            factor = self.trial.rate_factor(position, type(optimizer))
            before[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor

        def restore(*_: Any) -> None:
            for group, rate in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = rate
            self.updates += 1

        optimizer.register_step_pre_hook(scale)
        optimizer.register_step_post_hook(restore)

    def end_step(self, save: Save) -> None:
        """End a step; the trial may leave here, and goes on in the next attempt after what ``save`` saves."""
        plan = self.own_batches.plan
        self._step, self.updates = self._step + 1, 0
        if self._step < plan.steps:  # else the epoch ends, which is a better place to leave at
            self.trial.end_step(self._step, save, samples=plan.samples)

    def report(self, metrics: Mapping[str, float], save: Save) -> None:
        """Report an epoch. The study's metric is the mean over the ranks; of the others, rank 0's counts.

        Args:
            metrics: By name.
            save: Saves the loop's state, if a checkpoint is due.
        """
        self._report(metrics, save)

    def decide(self) -> bool:
        """Return whether there is another epoch, which begins then."""
        self.goes_on = next(self._epochs, None) is not None
        self._seed()
        return self.goes_on

    def end_epoch(self, metrics: Mapping[str, float], save: Save, *, is_last: bool = False) -> bool:
        """Report an epoch, and return whether the loop goes on with the next.

        Args:
            metrics: As in `report`.
            save: As in `report`.
            is_last: Whether the loop ends by itself, for example by early stopping: it saves now, or never.
        """
        if not is_last or self.trial.epoch + 1 >= self.trial.max_epochs:
            self._report(metrics, save)
            return self.decide()
        saved = self.trial.directory / f"last-{self.trial.epoch + 1}"
        save(saved)
        self._report(metrics, saved)
        self.goes_on = False
        return False

    def _report(self, metrics: Mapping[str, float], checkpoint: Save | Path) -> None:
        trial, values = self.trial, {name: float(value) for name, value in metrics.items()}
        if trial.metric in values:
            values[trial.metric] = trial.mean([values[trial.metric]])
        self._step = 0
        trial.report(**values, checkpoint=checkpoint)

    def leave(self, cause: str, save: Save) -> NoReturn:
        """Leave before the next epoch, since this loop cannot train it; the next attempt does."""
        self.trial.leave(cause, save)

    def _seed(self) -> None:
        """Let dropout and augmentation differ between ranks and epochs, and not repeat after a restart."""
        trial = self.trial
        seed_everything(seed_of(trial.seed, "loop", trial.epoch, self._step, trial.rank), trial.device)


_LOOPS: WeakKeyDictionary[Trial, TrainerLoop] = WeakKeyDictionary()


def loop_of(trial: Trial) -> TrainerLoop:
    """Return the trial's loop: one, whatever asks for it first."""
    if trial not in _LOOPS:
        _LOOPS[trial] = TrainerLoop(trial)
    return _LOOPS[trial]


def loader_for(trial: Trial, dataset: Any, **options: Any) -> DataLoader[Any]:
    """Return the loader of the training set for a trial (`TrainerLoop.loader`)."""
    return loop_of(trial).loader(dataset, **options)
