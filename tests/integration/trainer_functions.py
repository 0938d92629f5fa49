"""Training functions with loops of Lightning, Hugging Face and Accelerate, which note what they train on.

Tiny random models; nothing is downloaded. A study has a copy of this file as its module.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 64
SLOW = Path(__file__).with_name("slow")  # made by a test, beside the study's copy of this module


def points():
    """Return points on a plane; each begins with its number."""
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    return TensorDataset(torch.arange(SAMPLES), x, y)


class Witness:
    """Notes the samples of each micro-batch, and waits a little at each if the test has asked for it."""

    def __init__(self, trial) -> None:
        self.trial = trial
        self.path = trial.directory / f"seen-{trial.rank}.jsonl"

    def see(self, numbers) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([self.trial.epoch, self.trial.replicas, numbers.tolist()]) + "\n")
        if self.trial.world_size > 1 and SLOW.exists():
            time.sleep(0.15)
        time.sleep(float(os.environ.get("TRAINER_STEP_S", "0")))


def train_lightning(trial) -> None:
    import lightning

    from parsl_rasda.integrations.lightning import loader_for, trainer_for

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.plane = nn.Linear(3, 1)

        def training_step(self, batch, index):
            numbers, x, y = batch
            witness.see(numbers)
            return (self.plane(x) - y).square().mean()

        def validation_step(self, batch, index) -> None:
            _, x, y = batch
            self.log("val_loss", (self.plane(x) - y).square().mean())

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=trial.config["lr"], momentum=0.5)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    witness = Witness(trial)
    stops = [lightning.pytorch.callbacks.EarlyStopping("val_loss", patience=1, divergence_threshold=0.0)]
    trainer = trainer_for(trial, callbacks=stops if trial.config.get("stops") else None)
    trainer.fit(Net(), loader_for(trial, points()), DataLoader(points(), batch_size=32))


def train_huggingface(trial) -> None:
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback

    from parsl_rasda.integrations.huggingface import arguments_for, train_with

    class Plane(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config) -> None:
            super().__init__(config)
            self.plane = nn.Linear(3, 1)
            self.post_init()

        def forward(self, numbers, x, labels):
            if self.training:
                witness.see(numbers)
            prediction = self.plane(x)
            return {"loss": (prediction - labels).square().mean(), "logits": prediction}

    class Stops(TrainerCallback):
        def on_evaluate(self, args, state, control, **_) -> None:
            control.should_training_stop = True

    rows = [{"numbers": n, "x": x, "labels": y} for n, x, y in points()]
    witness = Witness(trial)
    args = arguments_for(trial, learning_rate=trial.config["lr"], optim="sgd", remove_unused_columns=False)
    torch.manual_seed(0)
    trainer = Trainer(Plane(PretrainedConfig()), args, train_dataset=rows, eval_dataset=rows)
    if trial.config.get("stops"):
        trainer.add_callback(Stops())
    train_with(trial, trainer)


def train_accelerate(trial) -> None:
    from parsl_rasda.integrations.accelerate import TrialAccelerator, loader_for

    witness = Witness(trial)
    accelerator = TrialAccelerator(trial)
    plane = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(plane.parameters(), lr=trial.config["lr"], momentum=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 8)
    loader = loader_for(trial, points())
    plane, optimizer, loader, schedule = accelerator.prepare(plane, optimizer, loader, schedule)
    for _ in accelerator.epochs():
        for numbers, x, y in loader:
            with accelerator.accumulate(plane):
                witness.see(numbers)
                accelerator.backward((plane(x) - y).square().mean())
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        with torch.no_grad():
            _, x, y = points().tensors
            accelerator.report(val_loss=(plane(x) - y).square().mean().item())
        if trial.config.get("stops"):
            break


def train_by_hand(trial) -> None:
    """Use DDP as one does, and of the trial only what a loop without `prepare` has."""
    ranks = trial.join()
    witness = Witness(trial)
    plane = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(plane.parameters(), lr=trial.config["lr"])
    if trial.checkpoint:
        saved = torch.load(trial.checkpoint)
        plane.load_state_dict(saved["plane"])
    model = nn.parallel.DistributedDataParallel(plane) if ranks > 1 else plane

    def save(path) -> None:
        if trial.is_main:
            torch.save({"plane": plane.state_dict()}, path)

    numbers, x, y = points().tensors
    size = trial.global_batch_size
    for epoch in trial.epochs():
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for step in range(trial.step_done, SAMPLES // size):
            for mine in (
                order[step * size : (step + 1) * size].chunk(ranks)[trial.rank].chunk(trial.replicas // ranks)
            ):
                witness.see(numbers[mine])
                ((model(x[mine]) - y[mine]).square().mean() * ranks / trial.replicas).backward()
            for group in optimizer.param_groups:
                group["lr"] = trial.config["lr"] * trial.rate_factor(
                    epoch + step * size / SAMPLES, type(optimizer)
                )
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) * size < SAMPLES:
                trial.end_step(step + 1, save, samples=SAMPLES)
        with torch.no_grad():
            trial.report(val_loss=(plane(x) - y).square().mean().item(), checkpoint=save)
