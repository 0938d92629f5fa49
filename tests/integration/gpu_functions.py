"""What tests and benchmarks train on a GPU: only kernels that add in a fixed order, so without pooling."""

from __future__ import annotations

from dataclasses import replace

from rank_launch import finished, mpi_command, rank_command, written_order

from parsl_rasda.devices import BACKEND_VARIABLE
from parsl_rasda.protocol import Training

CLASSES = 10


def train(trial):
    """Train a small convolutional network on random images, on the rank's device."""
    import torch
    from torch.nn import functional

    model, _ = trial.prepare(
        network(trial.config.get("channels", 16)),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=1e-4),
        lr=0.02,
    )
    data = samples(trial.config.get("samples", 256))
    for _ in trial.epochs():
        for x, y in trial.batches(data, noisy):
            trial.step(functional.cross_entropy(model(x), y))
        with torch.no_grad():
            losses = [functional.cross_entropy(model(x), y, reduction="none") for x, y in trial.shard(data)]
        on_gpu = float(all(p.device.type == trial.device.type for p in model.parameters()))
        trial.report(val_loss=trial.mean(torch.cat(losses)), on_device=on_gpu)


def network(channels):
    from torch import nn

    def block(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return (convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        *(*block(3, channels), *block(channels, 2 * channels), *block(2 * channels, 4 * channels)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * channels * 16, CLASSES)),
    )


def samples(count):
    import torch

    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(count, 3, 32, 32, generator=generator),
        torch.randint(0, CLASSES, (count,), generator=generator),
    )


def noisy(batch):
    """Random augmentation, on the generator of the device."""
    import torch

    x, y = batch
    return x + 0.1 * torch.randn_like(x), y


def trained(directory, world_size, *, accelerator="cuda", config=None, training=None, **changes):
    """Train on ranks that speak gloo and share the GPUs that there are; returns the order."""
    order = written_order(
        directory,
        world_size=world_size,
        python="gpu_functions:train",
        accelerator=accelerator,
        slots=(),
        config=config or {},
        training=replace(Training(batch_size=16, reduce="exact", clip_norm=1.0), **(training or {})),
        **changes,
    )
    command = mpi_command(order) if world_size > 1 else rank_command(order)
    status, errors = finished(command, {BACKEND_VARIABLE: "gloo"}, patience_s=600)
    if status:
        raise RuntimeError(errors)
    return order
