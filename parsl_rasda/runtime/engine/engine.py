"""A prepared model in training: the one place where weights change.

What it computes is a function of the configuration, the seed, the position and the schedule of replicas.
The number of ranks only decides where. Nothing here knows of controllers or reports.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from parsl_rasda.errors import InvalidSettingError, TrainingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.checkpoints.registered import Registered
from parsl_rasda.runtime.engine.batches import Batch
from parsl_rasda.runtime.engine.buffers import RunningBuffers
from parsl_rasda.runtime.engine.datasets import Samples, seed_everything
from parsl_rasda.runtime.engine.determinism import TRAINING, Deterministic, explained
from parsl_rasda.runtime.engine.exact_tree import ExactTree
from parsl_rasda.runtime.engine.forward import (
    PRECISIONS,
    compile_forward,
    run_in_precision,
    warn_if_nothing_compiled,
)
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.noise import NoiseMeter, noise_in
from parsl_rasda.runtime.engine.overlapped_sum import OverlappedSum
from parsl_rasda.runtime.engine.pairs import (
    ONE,
    Models,
    OptimizerFactory,
    Pair,
    losses_of,
    named_models,
    pairs_of,
    whole_of,
)
from parsl_rasda.runtime.engine.passes import Together, passes
from parsl_rasda.runtime.engine.reading import Reader
from parsl_rasda.runtime.engine.reduction import Reduction
from parsl_rasda.runtime.engine.replicas import (
    EpochPlan,
    MicroBatch,
    carried,
    is_power_of_two,
    seed_of,
    share_of_replica,
)
from parsl_rasda.runtime.engine.suitability import refuse_sparse_gradients
from parsl_rasda.runtime.engine.training_state import NON_TENSOR_FIELDS, TrainingState
from parsl_rasda.runtime.engine.update import Update, Updater
from parsl_rasda.types import GradientNoise, ScheduleEntry

HEADER_FIELDS = ("epoch", "step", "losses", "samples", "batch_size", *NON_TENSOR_FIELDS)
Schedule: TypeAlias = Sequence[ScheduleEntry]


@dataclass(slots=True)
class _Step:
    """An update in progress on this rank."""

    index: int
    of: int
    samples: int
    reduction: Reduction
    halt: Callable[[], bool]
    micro_batch: MicroBatch | None = None  # waiting for its loss
    is_last: bool = False
    trained: set[str] | None = None  # the models that have losses in this step


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the process before a restart has seen.

    Attributes:
        buffers: The names of those that have changed in the epoch to resume in.
        come_twice: Whether gradients have come twice in one backward pass.
    """

    buffers: Sequence[str] = ()
    come_twice: bool = False


@dataclass(slots=True)
class TrainingPosition:
    """Where training stands: epochs done, steps done in the next epoch, and its losses and noise so far."""

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)  # for each replica, the sum over its samples
    samples: int = 0  # whose losses these are
    noise: list[float] = field(default_factory=list)  # see `NoiseMeter.sums`


class Engine:
    """Models, optimizers, and everything that updates them."""

    def __init__(
        self,
        group: Group,
        training: Training,
        seed: int,
        models: Models,
        make_optimizer: OptimizerFactory | Mapping[str, OptimizerFactory],
        update: Update,
        *,
        will_restore: bool = False,
    ) -> None:
        """Prepare to train, on all ranks.

        Args:
            group: The ranks.
            training: How.
            seed: Of the trial.
            models: One, or several by name; their weights become those of rank 0.
            make_optimizer: Given parameters and a rate, returns the optimizer; one for each model.
            update: How they update.
            will_restore: Whether `restore` follows, so that nobody needs the weights as they are.
        """
        if training.precision not in PRECISIONS:
            raise InvalidSettingError("training.precision", training.precision, ", ".join(PRECISIONS))
        if training.reduce not in {"auto", "exact", "ddp"}:
            raise InvalidSettingError("training.reduce", training.reduce, "auto, exact, ddp")
        assert group.device is not None  # noqa: S101 - a group with an engine has one
        self.device: torch.device = group.device
        self.group, self.training, self.seed = group, training, seed
        named = named_models(models)
        self.model = model = whole_of(named)
        group.meet("trial.prepare", _described(model))
        self.is_sharded = training.sharding != "none" and _shard(named, group, training, will_restore)
        if not self.is_sharded:
            model.to(self.device)
            if not will_restore:
                group.broadcast([t for t in model.state_dict().values() if isinstance(t, Tensor)])
        self._buffers = RunningBuffers(model, group, named)
        self._seen = _Seen()
        self.has_batch_statistics = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
        self._modes: dict[nn.Module, bool] = {}  # of each module in training
        self.pairs = pairs_of(named, make_optimizer, update.rate)
        self.parameters = [p for pair in self.pairs.values() for p in pair.parameters]
        self.scaler = torch.amp.GradScaler(self.device.type) if training.precision == "fp16" else None
        self._updater = Updater(list(self.pairs.values()), update, training, self.scaler)
        self._state = TrainingState(
            model, self._updater.optimizers, self.scaler, group, is_sharded=self.is_sharded
        )
        self.registered = Registered()
        self.position, self.halted = TrainingPosition(), False
        self._together, self.reader = Together(self.device), Reader(self.device)
        self._step: _Step | None = None
        self._losses = torch.zeros(0)
        self._noise: NoiseMeter | None = None  # where one replica trains alone, or a reduction shows nothing
        self._reductions: dict[str, Reduction] = {}
        self._inexact = self._why_inexact()  # whatever the kernels do
        self._unwatched = set(self.pairs)  # the models that this process has not trained in order yet
        self._deterministic = Deterministic(
            is_demanded=training.reduce == "exact",
            is_compiled=training.compile,
            is_rocm=self.device.type == "cuda" and torch.version.hip is not None,
        )
        for model in named.values():
            run_in_precision(model, self.device.type, PRECISIONS[training.precision])
            if training.compile:
                compile_forward(model)

    # ------------------------------------------------------------------------------------- training

    def batches(
        self,
        samples: Samples,
        schedule: Schedule,
        *,
        transform: Callable[[Batch], Batch] | None,
        workers: int,
        halt: Callable[[], bool],
    ) -> Iterator[Batch]:
        """Yield this rank's micro-batches from the position on; end early once `halted`."""
        self.registered.close()
        _, replicas, *_ = ahead = schedule[-1]
        share = share_of_replica(self.training.batch_size, ahead[-1], replicas)
        plan = EpochPlan(len(samples), replicas, share)
        mine = carried(self.group.rank, self.group.size, plan.replicas)
        self.group.meet("trial.batches", f"of {len(samples)} samples")
        position, reduction = self.position, self._reduction(plan.replicas)
        self._begin_sums(mine, plan, reduction)
        self._together.begin_epoch(self._most_together(share))
        batches = self._read(samples, plan, mine, workers)
        self.train()
        self._buffers.begin_epoch(self._seen.buffers if position.step else ())
        first = position.step
        for index in range(first, plan.steps):
            micro_batches = plan.own(index, mine)
            self._updater.set_rates(position.epoch + (index + 0.5) / plan.steps, schedule)
            self._buffers.begin_step()
            step = self._step = _Step(index, plan.steps, plan.size(index), reduction, halt)
            self._together.begin_step(must_be_alone=index == first or self._buffers.do_change)
            for micro_batch, batch, is_last in passes(micro_batches, batches, self._together.now):
                self._begin(step, micro_batch, is_last=is_last)
                with self.deterministic(TRAINING):
                    yield transform(batch) if transform else batch
                if step.micro_batch is not None:
                    raise TrainingError(
                        "A batch was left without an update.", "Call trial.step(loss) for each."
                    )
            if not micro_batches:
                self.group.enter_step()
                self._finish(step)
            if self.halted:
                return

    def _read(self, samples: Samples, plan: EpochPlan, mine: range, workers: int) -> Iterator[Batch]:
        """Return this rank's batches from the position on, read ahead."""
        if self.is_sharded and plan.samples // plan.steps < plan.replicas:
            raise TrainingError(
                "A step has fewer samples than replicas, which ranks of a sharded model cannot share.",
                "Use more samples, or `training.sharding: none`.",
            )
        order = samples.order(self.seed, self.position.epoch)
        reads = (
            (self._seed_of("read", m), order[m.begin : m.begin + m.size])
            for index in range(self.position.step, plan.steps)
            for m in plan.own(index, mine)
        )
        return self.reader.read(samples, reads, workers=workers, streams=len(mine))

    def train(self) -> None:
        """Put all models in training mode again; modules the user froze (``norm.eval()``) stay frozen."""
        for model in (pair.model for pair in self.pairs.values()):
            if not model.training:
                for module in model.train().modules():
                    module.training = self._modes.get(module, True)

    def evaluate(self) -> None:
        """Put the model in eval mode. A collective operation if it is sharded."""
        if self.is_sharded:
            self.group.meet("trial.shard")
        for model in (pair.model for pair in self.pairs.values()):
            if model.training:
                self._modes |= {module: module.training for module in model.modules()}
        self.model.eval()

    def backward(self, loss: Tensor | Mapping[str, Tensor]) -> bool:
        """Train on the losses of the last micro-batch, and return whether the weights were updated."""
        step = self._step
        if step is None or step.micro_batch is None:
            raise TrainingError(
                "trial.step was called without a batch.", "Call it once for each of trial.batches(...)."
            )
        losses = list(losses_of(loss, self.pairs))
        _note_trained(step, {name for name, *_ in losses})
        micro_batch, step.micro_batch = step.micro_batch, None
        self._together.end()
        for *_, value in losses:
            self._losses[micro_batch.replica] += value.detach().double() * micro_batch.size
        if step.is_last or self.is_sharded:
            self.group.enter_step()
        step.reduction.listen(last=step.is_last)
        self._backward(losses, micro_batch.weight * step.reduction.scale)
        if self.position.step == 0:
            refuse_sparse_gradients(self.model)
        part = step.reduction.add(self._buffers.values(), micro_batch.weight, micro_batch.size)
        if self._noise is not None and part.samples:
            self._noise.add_part(part.square, micro_batch.replica, part.samples, step.samples)
        if step.is_last:
            self._finish(step)
        return step.is_last

    def _backward(self, losses: Sequence[tuple[str, Pair, Tensor]], factor: float) -> None:
        """Compute the gradients of the losses, each for the parameters of its own model."""
        try:
            for number, (name, pair, value) in enumerate(losses, 1):
                weighted = value * factor
                (self.scaler.scale(weighted) if self.scaler else weighted).backward(  # type: ignore[no-untyped-call] # torch
                    inputs=None if name == ONE else [p for p in pair.parameters if p.requires_grad],
                    retain_graph=number < len(losses),
                )
        except RuntimeError as error:
            words = explained(error, is_demanded=self.training.reduce == "exact")
            if words is error:
                raise
            raise words from error
        finally:
            self._deterministic.end()
        if not self._inexact:
            self._unwatched -= {name for name, *_ in losses}
            if not self._unwatched:
                self._deterministic.has_seen(TRAINING)

    @contextmanager
    def deterministic(self, kind: str) -> Iterator[None]:
        """Compute in a fixed order meanwhile, or up to the end of a backward pass, if sums must be exact.

        Args:
            kind: Of passes that run the same operations.
        """
        if not self._inexact:
            self._deterministic.begin(kind)
        try:
            yield
        finally:
            self._deterministic.end()

    def exactness(self) -> str:
        """Return whether training gives the same bits at any width, in the words of `EpochReport.exact`.

        A collective operation.
        """
        self._agree_on_unordered()
        return self._inexact or self._deterministic.words

    def _agree_on_unordered(self) -> None:
        known = self._deterministic.unordered
        if any(self.group.agree([len(known)])) and not known:
            self._deterministic.know(["an operation on another rank"])

    def end_epoch(self) -> TrainingPosition:
        """End the epoch, and return the position at its end.

        Raises:
            TrainingError: If it has steps that are not done.
        """
        step = self._step
        if step is not None and self.position.step < step.of:
            raise TrainingError(
                f"trial.batches was left after {self.position.step} of {step.of} steps.",
                "Let the loop end by itself; for shorter epochs, give it fewer samples.",
            )
        self._updater.check_rates()
        ended, self.position = self.position, TrainingPosition(self.position.epoch + 1)
        self._step = None
        if self.training.compile:
            warn_if_nothing_compiled(self.model)
        return ended

    @property
    def share_done(self) -> float | None:
        """How much of the epoch's steps is done; None before the first."""
        return None if self._step is None else self.position.step / self._step.of

    def loss_sums(self) -> list[float]:
        """Return the losses of the epoch so far, for each replica. A collective operation."""
        return self.group.sum(self._losses.tolist())

    def noise(self) -> GradientNoise | None:
        """Return the noise of the epoch so far, or None if nothing shows it. A collective operation."""
        return None if self._noise is None else noise_in(self._noise.sums())

    def _begin(self, step: _Step, micro_batch: MicroBatch, *, is_last: bool) -> None:
        """Make random numbers and buffers a function of the replica alone."""
        step.micro_batch, step.is_last = micro_batch, is_last
        if self.is_sharded:
            self.group.enter_step()  # the forward pass gathers the weights
        self._buffers.begin()
        step.reduction.begin()
        seed_everything(self._seed_of("compute", micro_batch), self.device)
        self._together.begin()

    def _most_together(self, share: int) -> int:
        """Return how many replicas may go through the model in one pass."""
        is_promised_more = self.training.reduce != "ddp" or self.is_sharded or self.has_batch_statistics
        return 1 if is_promised_more else self.training.batch_size // share

    @torch.no_grad()
    def _finish(self, step: _Step) -> None:
        means = self._buffers.alloc_means()
        self.halted = step.reduction.finish(means, halt=step.halt())
        self._buffers.finish(means, step.trained or ())
        if self._noise is not None:
            # get_scale() would wait for the device
            scale = self.scaler.scale(torch.ones((), device=self.device)).double() if self.scaler else 1.0
            self._noise.add_step(self.parameters, step.samples, scale)
        self._updater.step()
        self.registered.after_step()
        self.position.step = step.index + 1

    def _reduction(self, replicas: int) -> Reduction:
        size = self.group.size
        can_be_exact = is_power_of_two(replicas) and is_power_of_two(size)
        if self.training.reduce == "exact" and not can_be_exact:
            raise InvalidSettingError(
                "training.reduce", f"exact with {replicas} replicas", "powers of two, or ddp"
            )
        self._inexact = self._why_inexact() or (
            "" if can_be_exact else f"no: {replicas} replicas on {size} ranks, not powers of two"
        )
        kind = "exact" if can_be_exact and self.training.reduce != "ddp" else "ddp"
        kind = "sharded" if self.is_sharded else kind
        if kind not in self._reductions:
            self._reductions[kind] = self._new_reduction(kind, replicas // size)
        found = self._reductions[kind]
        if isinstance(found, ExactTree):
            found.carried = replicas // size
        return found

    def _why_inexact(self) -> str:
        """Return why sums are not exact with any number of replicas, or nothing."""
        if self.training.sharding != "none":
            return f"no: sharding is {self.training.sharding}"
        return "no: reduce is ddp" if self.training.reduce == "ddp" else ""

    def _new_reduction(self, kind: str, carried: int) -> Reduction:
        if kind == "exact":
            return ExactTree(self.group, self.parameters, carried, come_twice=self._come_twice)
        if kind == "sharded":
            from parsl_rasda.runtime.engine.sharding import ShardedSum

            return ShardedSum(self.group, self.model)
        return OverlappedSum(self.group, self.parameters, come_twice=self._come_twice)

    @property
    def _come_twice(self) -> bool:
        """Whether gradients have come twice in one backward pass."""
        return self._seen.come_twice or any(r.come_twice for r in self._reductions.values())

    def _begin_sums(self, mine: range, plan: EpochPlan, reduction: Reduction) -> None:
        """Restore the sums of this rank's replicas. Each has one owner, so their sum over ranks is exact."""
        sums = self.position.losses or [0.0] * plan.replicas
        own = [value if replica in mine else 0.0 for replica, value in enumerate(sums)]
        self._losses = torch.tensor(own, dtype=torch.float64, device=self.device)
        is_shown = plan.replicas > 1 and reduction.shows_parts
        done = self.position.noise
        self._noise = NoiseMeter(self.group, plan.replicas, mine, done) if is_shown else None
        self.position.samples = plan.samples

    def _seed_of(self, purpose: str, micro_batch: MicroBatch) -> int:
        return seed_of(self.seed, purpose, self.position.epoch, micro_batch.step, micro_batch.replica)

    # ----------------------------------------------------------------------------------- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of model and optimizer by name. A collective operation."""
        return self._state.tensors() | self.registered.state()[1]

    def header(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as plain JSON. A collective operation."""
        position = self.position
        self._agree_on_unordered()
        return {
            "epoch": position.epoch,
            "step": position.step,
            "losses": self.loss_sums() if position.step else [],
            "samples": position.samples if position.step else 0,
            "noise": self._noise.sums() if position.step and self._noise else [],
            "batch_size": self.training.batch_size,
            "seed": self.seed,
            "seen": {
                "unordered": list(self._deterministic.unordered),
                "buffers": self._buffers.changing if position.step else [],
                "come_twice": any(self.group.agree([int(self._come_twice)])),
            },
            **self._state.non_tensor_state(),
            **self.registered.state()[0],
        }

    def restore(self, path: Path, header: Mapping[str, Any]) -> None:
        """Restore the state at which a checkpoint was written.

        Raises:
            CheckpointError: If it belongs to another model or optimizer.
        """
        self.registered.resume(path, header, self._state.restore(path, header))
        seen = header.get("seen", {})  # headers of earlier versions have none
        self._deterministic.know(seen.get("unordered", ()))
        self._seen = _Seen(seen.get("buffers", ()), seen.get("come_twice", False))
        done = header["losses"], header["samples"], header.get("noise", [])
        self.position = TrainingPosition(header["epoch"], header["step"], *done)


def _described(model: nn.Module) -> str:
    """Return what must be the same on all ranks, in a few words."""
    parameters = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
    digest = zlib.crc32(repr(parameters).encode())
    count = sum(p.numel() for p in model.parameters())
    return f"of a {type(model).__name__} with {count} parameters [{digest:08x}]"


def _note_trained(step: _Step, names: set[str]) -> None:
    """Note which models a step trains: the same for all its batches, however many ranks share them."""
    if step.trained is not None and step.trained != names:
        raise TrainingError(
            f"One step trains {sorted(step.trained)} and {sorted(names)} by turns.",
            "All batches of a step train the same models; choose them by trial.step_done, not by a count of "
            "batches, of which a step has as many as the rank has replicas.",
        )
    step.trained = names


def _shard(models: Mapping[str, nn.Module], group: Group, training: Training, will_restore: bool) -> bool:
    from parsl_rasda.runtime.engine.sharding import check_sharding, shard

    check_sharding(training)
    if ONE not in models:
        raise InvalidSettingError("training.sharding", "fsdp with several models", "none")
    if group.size > 1:
        shard(models[ONE], group, PRECISIONS[training.precision], takes_weights=not will_restore)
    return group.size > 1
