"""The `Trial` that a training function is given: the same at any world size and on any site.

::

    def train(trial: Trial) -> None:
        model, optimizer = trial.prepare(build(trial.config), torch.optim.SGD, lr=trial.config["lr"])
        for epoch in trial.epochs():
            for x, y in trial.batches(train_set):
                trial.step(loss_fn(model(x), y))
            trial.report(val_loss=trial.mean(evaluate(model, trial.shard(val_set))))

torch is imported when it is needed: a function that only sleeps starts within a tenth of a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.attempt.attempt import PreemptRequested
from parsl_rasda.runtime.attempt.boundary import Answer, own_answer
from parsl_rasda.runtime.engine.exact_mean import mean_over, rounded_sum
from parsl_rasda.runtime.own_loop import Save
from parsl_rasda.runtime.own_trial import OwnTrial
from parsl_rasda.types import Outcome

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parsl_rasda.runtime.engine.batches import Batch
    from parsl_rasda.runtime.engine.engine import Engine
    from parsl_rasda.runtime.engine.learning_rate import Scaling
    from parsl_rasda.runtime.engine.pairs import Models, OptimizerFactory

    ModelT = TypeVar("ModelT", bound=nn.Module)
    OptimizerT = TypeVar("OptimizerT")

FEW_SAMPLES = 8  # of a replica in a step, below which batch statistics are noise


class Trial(OwnTrial):
    """One trial in training, on one rank; what it knows of itself is in `TrialFacts`."""

    # ----------------------------------------------------------------- what a training function calls

    @overload
    def prepare(
        self,
        model: ModelT,
        optimizer: Callable[[list[nn.Parameter], float], OptimizerT],
        *,
        lr: float,
        schedule: Callable[[float], float] | None = None,
        lr_scaling: Scaling | None = None,
        clip_norm: float | None = None,
    ) -> tuple[ModelT, OptimizerT]: ...

    @overload
    def prepare(
        self,
        model: Mapping[str, ModelT],
        optimizer: Mapping[str, Callable[[list[nn.Parameter], float], OptimizerT]],
        *,
        lr: float | Mapping[str, float],
        schedule: Callable[[float], float] | None = None,
        lr_scaling: Scaling | None = None,
        clip_norm: float | None = None,
    ) -> tuple[dict[str, ModelT], dict[str, OptimizerT]]: ...

    def prepare(
        self,
        model: Models,
        optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
        *,
        lr: float | Mapping[str, float],
        schedule: Callable[[float], float] | None = None,
        lr_scaling: Scaling | None = None,
        clip_norm: float | None = None,
    ) -> tuple[Any, Any]:
        """Return the model on its device and its optimizer, as the last attempt left them.

        The learning rate of a step is ``lr * scaling(batches) * warm-up * schedule(position)``, where batches
        are how many ``batch_size`` make a step (``scheduler.batch``: one, or one a replica); parameter groups
        keep their ratios. ``training.lr_scaling: auto`` scales linearly for SGD and ASGD, and by the
        square root for every other optimizer.

        Several models, such as those of a GAN, are given as a dict, with an optimizer for each; they come
        back as dicts. Each is trained by its own loss (`step`).

        Args:
            model: The whole model as one module, the same on each rank; or several by name.
            optimizer: Called as ``optimizer(parameters, lr)``, with the parameters that require gradients.
                It may return a tuple of optimizers that share them. For several models: one for each.
            lr: Learning rate of a step of ``batch_size`` samples; for several models, one for each or all.
            schedule: Another factor: a function of the position [epochs, 0 to `max_t`].
            lr_scaling: A function of the batches, instead of ``training.lr_scaling``.
            clip_norm: Largest norm of a step's gradient, of each model, instead of ``training.clip_norm``.

        Raises:
            CheckpointError: If the checkpoint to resume from is gone, or does not fit.
            TrainingError: If replicas cannot train the model.
        """
        from parsl_rasda.runtime.engine.engine import Engine
        from parsl_rasda.runtime.engine.pairs import ONE
        from parsl_rasda.runtime.engine.rank_device import device_name
        from parsl_rasda.runtime.engine.update import Update

        if self._engine is not None:
            raise TrainingError(
                "trial.prepare was called twice.",
                "Give it all models at once: trial.prepare({'g': g, 'd': d}, {'g': make, 'd': make}, lr=lr).",
            )
        self._attempt.interruptible, self._attempt.is_prepared = False, True
        self._group.device = self.device
        training = self._spec.training
        clip_norm = training.clip_norm if clip_norm is None else clip_norm
        update = Update(lr, lr_scaling, schedule, clip_norm)
        engine = Engine(
            self._group,
            training,
            self.seed,
            model,
            optimizer,
            update,
            will_restore=bool(self._spec.resume_from),
        )
        engine.position.epoch = self.epoch
        self._resume(engine)
        self._engine = engine
        self._warn_of_few_samples(engine)
        if self._group.size == 1:
            self._attempt.devices = tuple(filter(None, [device_name(self.device)]))
        made = {name: pair.made for name, pair in engine.pairs.items()}
        if ONE in made:
            return model, made[ONE]
        return {name: pair.model for name, pair in engine.pairs.items()}, made

    def register(self, name: str, thing: Any, *, each_step: Callable[[], object] | None = None) -> None:
        """Keep an object in the checkpoints, and let it go on where the last attempt left it.

        For example the average of the weights, in which `load_registered` finds them after the study::

            ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
            trial.register("ema", ema, each_step=lambda: ema.update_parameters(model))

        Args:
            name: In the checkpoint.
            thing: An object with ``state_dict`` and ``load_state_dict``, the same on each rank.
            each_step: Called after each update of the weights. A step may have several batches, so what is
                called after `step` is called too often.

        Raises:
            TrainingError: If it cannot be kept.
            CheckpointError: If the checkpoint to resume from has nothing of it.
        """
        with self._attempt.resuming():
            self._prepared("register").registered.add(name, thing, each_step)

    def epochs(self) -> Iterator[int]:
        """Yield the epochs to train: those that are not done, until the job must leave.

        A function that leaves the loop after a report, on every rank, has ended its trial: it is completed
        with what it has reported.
        """
        while self._attempt.outcome is None and self._goes_on_at_start():
            self._in_epoch, self._has_batches = True, False
            self._began = self._last_step = time.monotonic()
            if self._engine is not None:
                self._engine.train()
            elif not self._own.is_joined:
                self._attempt.ready()
            yield self.epoch
            if self._in_epoch:
                raise TrainingError(
                    f"Epoch {self.epoch} ended without trial.report(...).",
                    f"Call it once an epoch, on every rank; this is rank {self.rank}.",
                )
            self._decide()
        if self._engine is not None:
            self._engine.reader.close()

    def batches(
        self,
        dataset: Any,
        transform: Callable[[Batch], Batch] | None = None,
        *,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """Yield the micro-batches of this rank's replicas, on the device; each sample once an epoch.

        The order depends on seed and epoch only. Random numbers are seeded for every micro-batch, so that
        augmentation and dropout are the same at any world size. With ``reduce: ddp``, replicas that share a
        batch may come as one micro-batch where nothing random is drawn. If the samples do not fill the last
        step, they are spread evenly over all steps: no batch is larger than ``batch_size``, and none is a
        small remainder, which would be noisier than the others and break batch statistics.

        Args:
            dataset: A tuple or dict of arrays or tensors, a map-style ``Dataset``, an object with ``__len__``
                and ``read(indices)``, or shards on disk (`parsl_rasda.data.open_shards`), which a thread
                reads ahead in blocks. Each rank is given all of it.
            transform: Applied to each batch, on the device.
            workers: Number of processes that read ahead, started by whatever method; not used for shards.
                They live on over epochs, as long as the data set can be pickled and is the same.
        """
        from parsl_rasda.runtime.engine.datasets import Samples

        engine = self._prepared("batches")
        if not self._in_epoch or self._has_batches:
            raise TrainingError(
                "trial.batches was called outside an epoch, or twice in one.",
                "Call it once inside `for epoch in trial.epochs()`.",
            )
        self._has_batches = True
        yield from engine.batches(
            Samples(dataset),
            self._attempt.schedule,
            transform=transform,
            workers=workers,
            halt=self._must_leave,
        )
        if engine.halted:
            engine.reader.close()
            self._checkpoint(wait=True)
            raise PreemptRequested(agreed=True)

    def step(self, loss: Tensor | Mapping[str, Tensor]) -> None:
        """Train on the mean loss of the last batch: backward, accumulation, clipping, warm-up, update.

        Args:
            loss: The loss. For several models a dict with the loss of each, all at the weights before the
                step; one without a loss is not trained. A loss changes nothing but its own model.
                To train models by turns, choose by `step_done`.
        """
        engine = self._prepared("step")
        self._attempt.step()
        if engine.backward(loss):
            self._attempt.ready()
            now = time.monotonic()
            self._slowest_s = max(self._slowest_s, now - self._last_step)
            self._last_step = now

    def shard(self, dataset: Any) -> Iterator[Batch]:
        """Yield this rank's batches of a validation set, on the device, with the model in eval mode.

        The batches are the same at any world size. Give the losses of single samples, or of batches, to
        `mean`.
        """
        from parsl_rasda.runtime.engine.datasets import Samples, seed_everything
        from parsl_rasda.runtime.engine.determinism import VALIDATION
        from parsl_rasda.runtime.engine.replicas import carried, seed_of, validation_batches

        engine = self._prepared("shard")
        samples = Samples(dataset)
        mine = carried(self._group.rank, self._group.size, self.replicas)
        batches = validation_batches(len(samples), self.replicas, mine, self._attempt.replica_share)
        reads = [(seed_of(self.seed, "shard", self.epoch, batch.start), list(batch)) for batch in batches]
        engine.evaluate()
        for (seed, _), batch in zip(reads, engine.reader.read(samples, reads), strict=True):
            seed_everything(seed, self.device)
            with engine.deterministic(VALIDATION):
                yield batch

    def mean(self, values: Tensor | Iterable[Any]) -> float:
        """Return the mean over the values of all ranks, the same bits at any world size.

        The sum is exact until it is rounded once, so order and grouping do not matter (below 1e308, where
        doubles end).

        Args:
            values: One value for each sample (or batch): a tensor, an array, or an iterable of these or of
                numbers.

        Raises:
            TrainingError: If it is a single number, because the mean of one rank depends on the world size.
        """
        return mean_over(self._group, values)

    def latency(self, model: nn.Module, example: Any) -> float:
        """Return how long a forward pass of one batch takes on this rank's device [s]: a median of 20.

        Without gradients, after a warm-up, in eval mode; modes are left as they were. Times differ from run
        to run, and so may what a study decides by them: ``trial.report(..., latency=trial.latency(net, x))``.

        Args:
            model: A plain one, on its device: not one that `prepare` returned.
            example: What it is called with.
        """
        from parsl_rasda.runtime.latency import forward_seconds

        return forward_seconds(model, example)

    def log(self, **metrics: float) -> None:
        """Note metrics within an epoch, for curves: after some steps, as often as you like.

        They are told with the epoch's report; nothing is decided by them. What rank 0 says counts, and no
        rank waits for another: give it numbers, or what `mean` returned on every rank. Of very many in one
        epoch, a few hundred are kept, evenly spread.
        """
        if not self._in_epoch:
            raise TrainingError("trial.log was called outside an epoch.", "Call it before trial.report(...).")
        share = self._engine.share_done if self._engine is not None else None
        self._logged.add(share, {name: float(value) for name, value in metrics.items()})

    def report(self, *, checkpoint: str | Path | Save | None = None, **metrics: float) -> None:
        """End the epoch with its metrics, which must have the study's metric; NaN is allowed.

        With a prepared model, the mean training loss is added as ``train_loss`` unless it is given.

        Args:
            checkpoint: Without `prepare`, what this trial resumes from: the next attempt finds it as
                `trial.checkpoint`. It is a file or folder that is saved already, which is moved away; or, so
                as not to save in vain, a function that is called on every rank when a checkpoint is due, with
                the path of the file or folder to write.
            metrics: By name.

        Raises:
            TrainingError: If the study's metric is missing, or a checkpoint that is due.
            StorageError: If the file system fails.
        """
        if not self._in_epoch:
            raise TrainingError(
                "trial.report was called outside an epoch, or twice in one.", "Call it once an epoch."
            )
        values = {name: float(value) for name, value in metrics.items()}
        if self._spec.metric and self._spec.metric not in values:
            raise TrainingError(
                f"trial.report got {sorted(values)}, but the study's metric is {self._spec.metric!r}.",
                "Report it every epoch.",
            )
        if self._engine is not None and checkpoint is not None:
            raise TrainingError(
                "trial.report got a checkpoint, but trial.prepare saves the model by itself.", "Leave it out."
            )
        was_interruptible, self._attempt.interruptible = self._attempt.interruptible, False
        position = self._engine.end_epoch() if self._engine is not None else None
        self._own.give(checkpoint)
        self._own.step = 0
        self._group.meet("trial.report")
        self._attempt.noise = None
        if self._engine is not None and position is not None and position.step:
            self._attempt.samples, self._attempt.noise = position.samples, self._engine.noise()
            self._attempt.exact = self._engine.exactness()
            values.setdefault("train_loss", rounded_sum(self._engine.loss_sums()) / position.samples)
        seconds = time.monotonic() - self._began + self._carried_over_s
        self._carried_over_s, self._in_epoch = 0.0, False
        self._attempt.epoch += 1
        if self._engine is None:
            self._attempt.samples = self._own.samples
        at_rung = self.epoch >= self._attempt.until
        if at_rung or self._own.has_files or self.epoch % self._spec.training.checkpoint_every == 0:
            self._checkpoint(wait=at_rung and not self._may_train_on)
        self._keeper.note(0.0)
        self._attempt.ready()
        self._attempt.record(values, seconds, self._logged.take(self.epoch - 1))
        self._attempt.interruptible = was_interruptible

    # ------------------------------------------------------------------------------------- internals

    def finish(self) -> None:
        """End the trial where its function has returned by itself; for the process that called it.

        Raises:
            TrainingError: If the last epoch that was reported is not what there is to keep.
        """
        attempt = self._attempt
        is_saved = self._keeper.has_saved
        has_begun = self._in_epoch and self._engine is not None and self._has_batches
        if self.epoch == self._spec.epoch or (has_begun and not is_saved):
            raise TrainingError(
                f"The training function returned after {self.epoch} of {attempt.until} epochs"
                + (", in the middle of the next." if has_begun else "."),
                "Let `for epoch in trial.epochs()` end by itself, or leave it after trial.report(...).",
            )
        attempt.interruptible = False
        if self._engine is not None:
            self._engine.reader.close()
        self._group.meet("the end of the training function")
        self._group.part()
        if not is_saved:
            self._checkpoint(wait=True)
        self._keeper.note(None)
        attempt.outcome, attempt.is_finished = Outcome.REACHED, True

    def _prepared(self, what: str) -> Engine:
        if self._engine is None:
            raise TrainingError(f"trial.{what} needs a prepared model.", "Call trial.prepare(...) first.")
        return self._engine

    def _warn_of_few_samples(self, engine: Engine) -> None:
        """Warn if batch statistics are taken of few samples because replicas share a batch."""
        share, is_shared = self._attempt.replica_share, self._attempt.batches < self.replicas
        if is_shared and share < FEW_SAMPLES and engine.has_batch_statistics:
            self._attempt.warn(
                f"batch normalisation takes its statistics from {share} samples of each replica, for "
                f"{self.replicas} replicas share a step of {self.global_batch_size}: raise "
                "`training.batch_size`, lower `scheduler.max_workers`, or use another normalisation"
            )

    def _resume(self, engine: Engine) -> None:
        """Restore the engine from the checkpoint to resume from, if there is one."""
        if self._spec.resume_from:
            with self._attempt.resuming():
                self._restore(engine, self._keeper.find(self._spec.resume_from))

    def _restore(self, engine: Engine, path: Path) -> None:
        from parsl_rasda.runtime.engine.engine import HEADER_FIELDS

        found = self._group.from_first(lambda: json.dumps(self._keeper.resumable_header(path, HEADER_FIELDS)))
        header = json.loads(found)
        engine.restore(path, header)
        self._carried_over_s = header["seconds"]

    @property
    def _may_train_on(self) -> bool:
        """Whether training may go on at a rung before its checkpoint is whole: nobody keeps just that one."""
        spec = self._spec
        return spec.interactive and self.epoch < spec.max_epochs and not (spec.keeps_rungs or spec.keeps_best)

    def _goes_on_at_start(self) -> bool:
        if self.epoch < self._attempt.until:
            return True
        self._attempt.outcome = Outcome.REACHED
        return False

    def _decide(self) -> None:
        """Decide at an epoch boundary whether to go on; all ranks act on the same answer."""
        attempt = self._attempt
        was_interruptible, attempt.interruptible = attempt.interruptible, False
        self._group.meet("the end of an epoch, in trial.epochs")
        answer = Answer.WAIT
        until = replicas = batches = 0
        while answer is Answer.WAIT:
            code, until, replicas, batches = self._group.agree(own_answer(attempt, self._must_leave))
            answer = Answer(code)
        if answer is Answer.GO:
            attempt.go_on(until, replicas, batches)
            if self._engine is not None:
                self._warn_of_few_samples(self._engine)
        else:
            attempt.outcome = Outcome.REACHED if answer is Answer.LEAVE else Outcome.PREEMPTED
            if not self._keeper.has_saved:
                self._checkpoint(wait=True)
            self._keeper.note(None)
        attempt.interruptible = was_interruptible and answer is Answer.GO
