"""A prepared model in training: the one place where weights change.

What it computes is a function of the configuration, the seed, the position and the schedule of replicas.
The number of ranks only decides where. Nothing here knows of controllers or reports.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from parsl_rasda.errors import InvalidSettingError, TrainingError
from parsl_rasda.protocol import Training
from parsl_rasda.runtime.engine.batches import Batch
from parsl_rasda.runtime.engine.buffers import RunningBuffers
from parsl_rasda.runtime.engine.datasets import Samples, read_all, seed_everything
from parsl_rasda.runtime.engine.exact_tree import ExactTree
from parsl_rasda.runtime.engine.forward import (
    PRECISIONS,
    compile_forward,
    run_in_precision,
    warn_if_nothing_compiled,
)
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.learning_rate import OwnedRates, Scaling, rate_factor, scaling_rule
from parsl_rasda.runtime.engine.noise import NoiseMeter, noise_in
from parsl_rasda.runtime.engine.overlapped_sum import OverlappedSum
from parsl_rasda.runtime.engine.passes import Together, passes
from parsl_rasda.runtime.engine.reduction import Reduction
from parsl_rasda.runtime.engine.replicas import (
    EpochPlan,
    MicroBatch,
    carried,
    is_power_of_two,
    seed_of,
    share_of_replica,
)
from parsl_rasda.runtime.engine.suitability import (
    refuse_sparse_gradients,
    refuse_unfit_loss,
    refuse_unfit_model,
    refuse_unfit_optimizer,
    trained_parameters,
)
from parsl_rasda.runtime.engine.training_state import NON_TENSOR_FIELDS, TrainingState
from parsl_rasda.types import GradientNoise, ScheduleEntry

HEADER_FIELDS = ("epoch", "step", "losses", "samples", "batch_size", *NON_TENSOR_FIELDS)
OptimizerFactory: TypeAlias = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
Schedule: TypeAlias = Sequence[ScheduleEntry]


@dataclass(frozen=True, slots=True)
class Update:
    """How the optimizer updates: the options of `Trial.prepare`.

    Attributes:
        rate: The learning rate that is scaled and warmed up.
        scaling: How it follows the batches of a step; None for ``training.lr_scaling``.
        schedule: Another factor: a function of the position [epochs].
        clip_norm: Largest norm of a step's gradient, or None.
    """

    rate: float
    scaling: Scaling | None = None
    schedule: Callable[[float], float] | None = None
    clip_norm: float | None = None


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


@dataclass(slots=True)
class TrainingPosition:
    """Where training stands: epochs done, steps done in the next epoch, and its losses and noise so far."""

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)  # for each replica, the sum over its samples
    samples: int = 0  # whose losses these are
    noise: list[float] = field(default_factory=list)  # see `NoiseMeter.sums`


class Engine:
    """Model, optimizer, and everything that updates them."""

    def __init__(
        self,
        group: Group,
        training: Training,
        seed: int,
        model: nn.Module,
        make_optimizer: OptimizerFactory,
        update: Update,
    ) -> None:
        if training.precision not in PRECISIONS:
            raise InvalidSettingError("training.precision", training.precision, ", ".join(PRECISIONS))
        if training.reduce not in {"auto", "exact", "ddp"}:
            raise InvalidSettingError("training.reduce", training.reduce, "auto, exact, ddp")
        assert group.device is not None  # noqa: S101 - a group with an engine has one
        self.device: torch.device = group.device
        self.group, self.training, self.seed, self.update = group, training, seed, update
        refuse_unfit_model(model)
        group.meet("trial.prepare", _described(model))
        self.model = model
        self.is_sharded = training.sharding != "none" and _shard(model, group, training)
        if not self.is_sharded:
            model.to(self.device)
            group.broadcast([t for t in model.state_dict().values() if isinstance(t, Tensor)])
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = RunningBuffers(model, group)
        self.has_batch_statistics = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
        self._modes: dict[nn.Module, bool] = {}  # of each module in training
        self.optimizer = make_optimizer(self.parameters, update.rate)
        refuse_unfit_optimizer(self.optimizer)
        self.parameters = trained_parameters(model, self.optimizer)
        self._rates = OwnedRates(self.optimizer)
        self.scaling = update.scaling or scaling_rule(training.lr_scaling, type(self.optimizer))
        self.scaler = torch.amp.GradScaler(self.device.type) if training.precision == "fp16" else None
        self._state = TrainingState(model, self.optimizer, self.scaler, group, is_sharded=self.is_sharded)
        self.position = TrainingPosition()
        self.halted = False
        self._together = Together(self.device)
        self._step: _Step | None = None
        self._losses = torch.zeros(0)
        self._noise: NoiseMeter | None = None  # where one replica trains alone, or a reduction shows nothing
        self._reductions: dict[str, Reduction] = {}
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
        self._buffers.begin_epoch()
        first = position.step
        for index in range(first, plan.steps):
            micro_batches = plan.own(index, mine)
            self._set_rate(position.epoch + (index + 0.5) / plan.steps, schedule)
            self._buffers.begin_step()
            step = self._step = _Step(index, plan.steps, plan.size(index), reduction, halt)
            self._together.begin_step(must_be_alone=index == first or self._buffers.do_change)
            for micro_batch, batch, is_last in passes(micro_batches, batches, self._together.now):
                self._begin(step, micro_batch, is_last=is_last)
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
        return read_all(samples, reads, self.device, workers=workers, streams=len(mine))

    def train(self) -> None:
        """Put the model in training mode again; modules that the user froze (``norm.eval()``) stay frozen."""
        if not self.model.training:
            self.model.train()
            for module, mode in self._modes.items():
                module.training = mode

    def evaluate(self) -> None:
        """Put the model in eval mode. A collective operation if it is sharded."""
        if self.is_sharded:
            self.group.meet("trial.shard")
        if self.model.training:
            self._modes = {module: module.training for module in self.model.modules()}
        self.model.eval()

    def backward(self, loss: Tensor) -> bool:
        """Train on the loss of the last micro-batch, and return whether the weights were updated."""
        step = self._step
        if step is None or step.micro_batch is None:
            raise TrainingError(
                "trial.step was called without a batch.", "Call it once for each of trial.batches(...)."
            )
        refuse_unfit_loss(loss)
        micro_batch, step.micro_batch = step.micro_batch, None
        self._together.end()
        self._losses[micro_batch.replica] += loss.detach().double() * micro_batch.size
        if step.is_last or self.is_sharded:
            self.group.enter_step()
        weighted = loss * (micro_batch.weight * step.reduction.scale)
        step.reduction.listen(last=step.is_last)
        (self.scaler.scale(weighted) if self.scaler else weighted).backward()  # type: ignore[no-untyped-call] # torch
        if self.position.step == 0:
            refuse_sparse_gradients(self.model)
        part = step.reduction.add(self._buffers.values(), micro_batch.weight, micro_batch.size)
        if self._noise is not None and part.samples:
            self._noise.add_part(part.square, micro_batch.replica, part.samples, step.samples)
        if step.is_last:
            self._finish(step)
        return step.is_last

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
        self._rates.check()
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
        self._buffers.finish(means)
        if self._noise is not None:
            # get_scale() would wait for the device
            scale = self.scaler.scale(torch.ones((), device=self.device)).double() if self.scaler else 1.0
            self._noise.add_step(self.parameters, step.samples, scale)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.update.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.update.clip_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.position.step = step.index + 1

    def _reduction(self, replicas: int) -> Reduction:
        size = self.group.size
        kind = self.training.reduce
        can_be_exact = is_power_of_two(replicas) and is_power_of_two(size)
        if kind == "exact" and not can_be_exact:
            raise InvalidSettingError(
                "training.reduce", f"exact with {replicas} replicas", "powers of two, or ddp"
            )
        if kind == "auto":
            kind = "exact" if can_be_exact else "ddp"
        kind = "sharded" if self.is_sharded else kind
        if kind not in self._reductions:
            self._reductions[kind] = self._new_reduction(kind, replicas // size)
        found = self._reductions[kind]
        if isinstance(found, ExactTree):
            found.carried = replicas // size
        return found

    def _new_reduction(self, kind: str, carried: int) -> Reduction:
        if kind == "exact":
            return ExactTree(self.group, self.parameters, carried)
        if kind == "sharded":
            from parsl_rasda.runtime.engine.sharding import ShardedSum

            return ShardedSum(self.group, self.model)
        return OverlappedSum(self.group, self.parameters)

    def _begin_sums(self, mine: range, plan: EpochPlan, reduction: Reduction) -> None:
        """Restore the sums of this rank's replicas. Each has one owner, so their sum over ranks is exact."""
        sums = self.position.losses or [0.0] * plan.replicas
        own = [value if replica in mine else 0.0 for replica, value in enumerate(sums)]
        self._losses = torch.tensor(own, dtype=torch.float64, device=self.device)
        is_shown = plan.replicas > 1 and reduction.shows_parts
        done = self.position.noise
        self._noise = NoiseMeter(self.group, plan.replicas, mine, done) if is_shown else None
        self.position.samples = plan.samples

    def _set_rate(self, position: float, schedule: Schedule) -> None:
        factor = rate_factor(
            position,
            schedule,
            self.scaling,
            initial=self.training.warmup_initial,
            rescale=self.training.warmup_rescale,
        )
        if self.update.schedule:
            factor *= self.update.schedule(position)
        self._rates.scale(factor)

    def _seed_of(self, purpose: str, micro_batch: MicroBatch) -> int:
        return seed_of(self.seed, purpose, self.position.epoch, micro_batch.step, micro_batch.replica)

    # ----------------------------------------------------------------------------------- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of model and optimizer by name. A collective operation."""
        return self._state.tensors()

    def header(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as plain JSON. A collective operation."""
        position = self.position
        return {
            "epoch": position.epoch,
            "step": position.step,
            "losses": self.loss_sums() if position.step else [],
            "samples": position.samples if position.step else 0,
            "noise": self._noise.sums() if position.step and self._noise else [],
            "batch_size": self.training.batch_size,
            "seed": self.seed,
            **self._state.non_tensor_state(),
        }

    def restore(self, path: Path, header: Mapping[str, Any]) -> None:
        """Restore the state at which a checkpoint was written.

        Raises:
            CheckpointError: If it belongs to another model or optimizer.
        """
        self._state.restore(path, header)
        done = header["losses"], header["samples"], header.get("noise", [])
        self.position = TrainingPosition(header["epoch"], header["step"], *done)


def _described(model: nn.Module) -> str:
    """Return what must be the same on all ranks, in a few words."""
    parameters = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
    digest = zlib.crc32(repr(parameters).encode())
    count = sum(p.numel() for p in model.parameters())
    return f"of a {type(model).__name__} with {count} parameters [{digest:08x}]"


def _shard(model: nn.Module, group: Group, training: Training) -> bool:
    from parsl_rasda.runtime.engine.sharding import check_sharding, shard

    check_sharding(training)
    if group.size > 1:
        shard(model, group)
    return group.size > 1
