"""A script as torchrun starts it: one process a GPU (or core), gradients averaged by DDP.

It learns y = sin(x0) + x1 * x2 from noisy samples. Arguments in, a checkpoint and a JSON report out.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SAMPLES = 512


def main() -> None:
    """Train from where the checkpoint stands to the epoch that is asked for."""
    arguments = parsed()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)  # else every rank's communication opens the first one
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank = dist.get_rank()
    torch.manual_seed(arguments.seed)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)).to(device))
    optimizer = torch.optim.SGD(model.parameters(), arguments.lr, momentum=arguments.momentum)
    epoch = 0
    if arguments.resume:
        state = torch.load(Path(arguments.resume) / "state.pt", weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = state["epoch"]
    training, validation = samples(0), samples(1)
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(training, seed=arguments.seed)
    while epoch < arguments.epochs:
        sampler.set_epoch(epoch)
        for x, y in DataLoader(training, batch_size=arguments.batch_size, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x.to(device)), y.to(device)).backward()  # type: ignore[no-untyped-call] # torch
            optimizer.step()
        epoch += 1
    with torch.no_grad():
        x, y = (part.to(device) for part in validation.tensors)
        loss = nn.functional.mse_loss(model.module(x), y)
    if rank == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, arguments.save / "state.pt")
        arguments.report.write_text(json.dumps({"val_loss": float(loss)}), encoding="utf-8")
    dist.destroy_process_group()


def samples(seed: int) -> TensorDataset:
    """Return inputs ``(samples, 3)`` and noisy outputs ``(samples, 1)``."""
    generator = torch.Generator().manual_seed(seed)
    x: Tensor = torch.randn(SAMPLES, 3, generator=generator)
    noise = 0.05 * torch.randn(SAMPLES, 1, generator=generator)
    return TensorDataset(x, torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:] + noise)


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--resume", default="")
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
