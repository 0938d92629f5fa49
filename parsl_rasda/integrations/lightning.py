"""Trials trained by Lightning's Trainer.

::

    def train(trial):
        model = Net(trial.config)
        loader = loader_for(trial, train_set)
        trainer = trainer_for(trial)
        trainer.fit(model, loader, val_loader)

What the module logs is reported each epoch, so ``self.log`` must be given the study's metric.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from parsl_rasda.errors import TrainingError
from parsl_rasda.integrations.loop import TrainerLoop, loader_for, loop_of, refuse
from parsl_rasda.runtime import Trial

__all__ = ["RasdaCallback", "RasdaEnvironment", "loader_for", "trainer_for"]

_OURS = {
    "accumulate_grad_batches",
    "devices",
    "num_nodes",
    "use_distributed_sampler",
    "reload_dataloaders_every_n_epochs",
    "enable_checkpointing",
    "barebones",
    "fast_dev_run",
    "limit_train_batches",
    "max_steps",
    "overfit_batches",
}


def trainer_for(trial: Trial, **options: Any) -> Trainer:
    """Return a Trainer for a trial, on its ranks and their devices, which resumes where the trial was.

    Args:
        trial: The trial.
        options: As for ``Trainer``: precision, strategy, clipping, loggers, further callbacks and plug-ins.

    Raises:
        TrainingError: If an option is the trial's to decide.
    """
    refuse("trainer_for", _OURS & options.keys())
    loop = loop_of(trial)
    own: dict[str, Any] = {
        "accelerator": "cpu" if trial.device.type == "cpu" else "gpu",
        "strategy": "ddp" if loop.ranks > 1 else "auto",
        "max_epochs": trial.max_epochs,
        "default_root_dir": trial.directory,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,  # each restart would pay for it
    }
    own |= options
    environment = RasdaEnvironment(trial)
    trainer = Trainer(
        **own
        | {
            "devices": loop.ranks // environment.nodes,
            "num_nodes": environment.nodes,
            "use_distributed_sampler": False,  # the trial's batches are shared out already
            "reload_dataloaders_every_n_epochs": 1,  # an epoch has other batches once the replicas have grown
            "plugins": [environment, *_listed(options.get("plugins"))],
            "callbacks": [*_listed(options.get("callbacks")), RasdaCallback(trial)],
        }
    )
    if loop.checkpoint is not None:
        trainer.ckpt_path = loop.checkpoint
    return trainer


class RasdaEnvironment(TorchElasticEnvironment):  # type: ignore[misc] # mypy skips the library
    """The ranks of a trial, which are started already and have met: an environment plug-in.

    Attributes:
        nodes: Number of nodes of the job.
    """

    def __init__(self, trial: Trial) -> None:
        """Let the ranks meet; several have then initialised torch.distributed."""
        super().__init__()
        self._is_alone = loop_of(trial).ranks == 1
        self.nodes = 1 if self._is_alone else int(os.environ["GROUP_WORLD_SIZE"])

    def world_size(self) -> int:
        """Return the number of ranks."""
        return 1 if self._is_alone else int(super().world_size())

    def global_rank(self) -> int:
        """Return which rank this is."""
        return 0 if self._is_alone else int(super().global_rank())

    def local_rank(self) -> int:
        """Return which of the visible devices is its own."""
        return 0 if self._is_alone else int(super().local_rank())

    def node_rank(self) -> int:
        """Return which of the job's nodes this is."""
        return 0 if self._is_alone else int(super().node_rank())


class RasdaCallback(Checkpoint):  # type: ignore[misc] # mypy skips the library
    """Reports each epoch to the study, and stops, saves and scales as it says.

    As a ``Checkpoint``, it comes after the other callbacks, sees all that they log, and takes the place of
    the ``ModelCheckpoint`` that Lightning adds.
    """

    def __init__(self, trial: Trial) -> None:
        """Belong to one trial and, once it trains, to one Trainer."""
        self._loop: TrainerLoop = loop_of(trial)
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        self._is_mid_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Accumulate the replicas that this rank carries."""
        if not pl_module.automatic_optimization:
            raise TrainingError(
                "The module has automatic_optimization = False, so nothing accumulates its replicas.",
                "Use automatic optimisation, or trial.prepare.",
            )
        if stage == "fit":
            trainer.accumulate_grad_batches = self._loop.accumulated

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the trial's first epoch."""
        signal.signal(
            signal.SIGTERM, self._on_sigterm
        )  # Lightning's own would talk to ranks that do not listen
        for optimizer in trainer.optimizers:
            self._loop.scale_rates(optimizer)
        self._loop.begin()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Accumulate the replicas of this epoch."""
        trainer.accumulate_grad_batches = self._loop.accumulated

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave after a step if the trial must."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._is_mid_epoch = True
            self._loop.end_step(lambda path: trainer.save_checkpoint(path, weights_only=False))
            self._is_mid_epoch = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch; stop the Trainer unless there is another."""
        metrics = {
            name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1
        }
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not self._loop.end_epoch(
            metrics, lambda path: trainer.save_checkpoint(path, weights_only=False), is_last=ends
        ):
            trainer.should_stop = True
            trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """In the middle of an epoch, save that it has not begun: the trial's loader gives the rest of it."""
        if self._is_mid_epoch:
            progress = checkpoint["loops"]["fit_loop"]
            for counts in progress["epoch_progress"].values():
                counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]
            for counts in (progress["epoch_loop.batch_progress"][part] for part in ("total", "current")):
                counts["completed"] = counts["processed"]


def _listed(value: Any) -> list[Any]:
    """Return what Lightning takes as one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
