"""Training functions that the runtime tests start in real rank processes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def sleep(trial):
    """Trains nothing and never needs torch."""
    for _ in trial.epochs():
        time.sleep(trial.config.get("epoch_s", 0.0))
        trial.report(val_loss=1.0 / (trial.epoch + 1), saw_torch=float("torch" in sys.modules))


def forget_to_report(trial):
    for _ in trial.epochs():
        pass


def return_early(trial):
    return None


def load_in_vain(trial):
    from parsl_rasda.runtime.checkpoints.checkpoint import read_header

    read_header(trial.directory / "nothing")


def close_descriptors(trial):
    """Close a range of descriptors in every epoch, as programs do that become daemons."""
    own = []
    for _ in trial.epochs():
        os.closerange(*trial.config["range"])
        if trial.config.get("reuse"):  # files of its own get the numbers
            own += [(trial.directory / f"own-{number}").open("w") for number in range(3, 12)]
        trial.report(val_loss=0.0)


def hang(trial):
    """Hang in an epoch, whatever comes; soon nobody is left to end it."""
    from parsl_rasda.runtime.process import rank

    rank.LOST_S = 0.5
    trial._attempt.interruptible = False  # as with a prepared model
    for _ in trial.epochs():
        while True:
            time.sleep(60)


def leave_a_daemon(trial):
    """Leave a process in a session of its own, without an environment and without a parent."""
    for _ in trial.epochs():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                tell = f"echo $$ > {trial.directory}/daemon-{trial.rank}"
                os.execve("/bin/sh", ["sh", "-c", f"{tell}; exec sleep 600"], {})
            os._exit(0)
        while not (trial.directory / f"daemon-{trial.rank}").exists():
            time.sleep(0.01)
        trial.report(val_loss=0.0)


def fill_the_disk(trial):
    """Fill a file system to the last page, and then use it."""
    for _ in trial.epochs():
        with contextlib.suppress(OSError), Path(trial.config["filler"]).open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        match trial.config["then"]:
            case "print":
                print("x" * 100_000, flush=True)
            case "save":
                import torch

                torch.save({"x": torch.zeros(100_000)}, trial.directory / "model.pt")
        trial.report(val_loss=0.0)


def print_much(trial):
    for _ in trial.epochs():
        print("noise without an end", end="")
        os.write(1, b"and more\n" * 100)
        trial.report(val_loss=0.0)


def start_programs(trial):
    """Starts programs that read their standard input: ffmpeg and ssh do so unasked."""
    for _ in trial.epochs():
        read = subprocess.run(("cat",), stdout=subprocess.PIPE, timeout=10, check=True).stdout
        trial.report(val_loss=float(len(read)))


def use_a_pool(trial):
    """Shares work with processes that are ended as `multiprocessing` ends them: by SIGTERM."""
    import multiprocessing

    if trial.config.get("prepares"):
        import torch

        trial.prepare(torch.nn.Linear(1, 1), torch.optim.SGD, lr=0.1)
    for _ in trial.epochs():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            total = sum(pool.map(abs, range(4)))
        trial.report(val_loss=float(total))


def fork_once(trial):
    """Reports how a child of its own has ended."""
    for _ in trial.epochs():
        child = os.fork()
        if child == 0:
            os._exit(0)
        trial.report(val_loss=float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


def describe(trial):
    """Tells what this process was started with, then does what its configuration says."""
    note = trial.directory / f"rank-{trial.rank}.json"
    facts = {
        "pid": os.getpid(),
        "forked": "PARSL_RASDA_FORKED" in os.environ,
        "torch": "torch" in sys.modules,
        "environment": dict(os.environ),
        "directory": str(Path.cwd()),
        "path": sys.path,
        "cpus": sorted(os.sched_getaffinity(0)),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "umask": os.umask(0o22),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "stdin": sys.stdin.read() if not os.isatty(0) and trial.config.get("read") else "",
    }
    helpers = [subprocess.Popen(("sleep", "600")) for _ in range(trial.config.get("helpers", 0))]
    facts["helpers"] = [helper.pid for helper in helpers]
    part = note.with_suffix(".part")
    part.write_text(json.dumps(facts))
    part.rename(note)
    act = trial.config.get("act", {})
    if act.get("rank", trial.rank) != trial.rank:
        act = {}
    while "once" in act and not Path(act["once"]).exists():
        time.sleep(0.01)
    for _ in trial.epochs():
        if "rank" not in act:
            time.sleep(trial.config.get("epoch_s", 0.0))
        if act.get("raise"):
            raise ValueError("as the test wants")
        if "exit" in act:
            os._exit(act["exit"])
        if "signal" in act:
            os.kill(os.getpid(), act["signal"])
        trial.report(val_loss=1.0)


def learn(trial):
    """A small network with everything that could depend on the world size."""
    import torch
    from torch.nn import functional

    if trial.config.get("rivals"):
        learn_by_turns(trial)
        return
    model = network(getattr(torch, trial.config.get("dtype", "float32")))
    if trial.config.get("spectral"):
        model[-1] = torch.nn.utils.parametrizations.spectral_norm(model[-1])
    if trial.config.get("uncompilable"):
        model.forward = torch.compiler.disable(model.forward)
    is_plain = trial.config.get("plain")  # nothing that a replica must compute by itself
    if is_plain:
        alone = torch.nn.BatchNorm2d, torch.nn.Dropout
        model = torch.nn.Sequential(*(module for module in model if not isinstance(module, alone)))
    model, _ = trial.prepare(
        model,
        optimizer_of(trial.config),
        lr=trial.config["lr"],
    )
    data, validation = samples(trial.config)
    if "shards" in trial.config:
        from parsl_rasda.data import open_shards

        data = open_shards(trial.config["shards"])
    (trial.directory / f"pid-{trial.rank}").write_text(str(os.getpid()))
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())
    (trial.directory / f"held-{trial.rank}").write_text(str(held))
    for epoch in trial.epochs():
        workers = trial.config.get("workers", 0)
        for batch, (x, y) in enumerate(trial.batches(data, None if is_plain else shifted, workers=workers)):
            happen(trial, epoch, batch)
            trial.step(functional.cross_entropy(model(x), y))
        trial.report(val_loss=trial.mean(evaluate(model, trial.shard(validation))))


def learn_by_turns(trial):
    """Two models with an optimizer each, as in a GAN; one has tied weights, and its average is kept."""
    import torch
    from torch.nn import functional
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    dtype = getattr(torch, trial.config["dtype"])
    torch.manual_seed(1)
    critic = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5)).to(dtype)
    critic[2].weight = critic[0].weight
    models, _ = trial.prepare(
        {"net": network(dtype), "critic": critic},
        {"net": optimizer_of({}), "critic": optimizer_of({"optimizer": "adamw"})},
        lr={"net": trial.config["lr"], "critic": 1e-3},
    )
    net, critic = models["net"], models["critic"]
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    trial.register("ema", ema, each_step=lambda: ema.update_parameters(net))
    data, validation = samples(trial.config)
    for epoch in trial.epochs():
        for batch, (x, y) in enumerate(trial.batches(data, shifted)):
            happen(trial, epoch, batch)
            logits = net(x)
            losses = {"net": functional.cross_entropy(logits + critic(logits), y)}
            if trial.step_done % 2 == 0:
                losses["critic"] = (critic(logits) - logits.roll(1, 1)).square().mean()
            trial.step(losses)
        trial.report(val_loss=trial.mean(evaluate(net, trial.shard(validation))))


def stand_still(trial):
    """Shows the gradients of a small network that learns nothing, so that all epochs see the same ones."""
    import torch
    from torch.nn import functional

    model, _ = trial.prepare(unmoved_network(), torch.optim.SGD, lr=0.0)
    for _ in trial.epochs():
        for x, y in trial.batches(lopsided_samples()):
            trial.step(functional.cross_entropy(model(x), y))
        trial.report(val_loss=0.0)


def unmoved_network():
    import torch

    torch.manual_seed(5)
    layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU())
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 16, 2))


def lopsided_samples():
    """Most are of one class, so that the gradient is not hidden by its noise."""
    import torch

    x = torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2)) - 0.12).long()


def draw_late(trial):
    """Imports what it draws from when it needs it, as functions do that start fast."""
    import random

    first = random.random()
    import numpy as np
    import torch

    weight = torch.nn.Linear(1, 1).weight.item()
    for _ in trial.epochs():
        drawn = np.random.rand()  # noqa: NPY002 - the global generator is what is tested
        trial.report(val_loss=weight, python=first, numpy=drawn)


def happen(trial, epoch, batch):
    """What the test has planned for this moment."""
    plan = trial.config.get("at", {})
    if plan.get("epoch") != epoch or plan.get("batch") != batch:
        return
    if plan["what"] == "raise" and trial.rank == plan["rank"]:
        (trial.directory / "raised").write_text(str(time.time()))
        raise ValueError("the loss is\nnot a loss")
    if plan["what"] == "wait for a signal" or (plan["what"] == "rank 0 waits" and trial.rank == 0):
        (trial.directory / f"waiting-{trial.rank}").touch()
        while trial._attempt.preempt_cause is None:
            time.sleep(0.01)
        time.sleep(plan.get("then_s", 0.0))
    if plan["what"] == "preempt" and trial.rank == trial.world_size - 1:
        trial._attempt.preempt("the test says so")


def network(dtype):
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, 5),
    ).to(dtype)


def optimizer_of(config):
    import torch

    if config.get("optimizer") == "adamw":
        return lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=1e-2)
    return lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, weight_decay=1e-3)


def samples(config):
    import torch

    dtype, count = getattr(torch, config.get("dtype", "float32")), config.get("samples", 203)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 1, 12, 12, generator=generator, dtype=torch.float64)
    w = torch.randn(144, 5, generator=generator, dtype=torch.float64)
    y = (x.flatten(1) @ w).argmax(1)
    return (x.to(dtype), y), (x[:61].to(dtype), y[:61])


def shifted(batch):
    """Random augmentation, on the global generator."""
    import torch

    x, y = batch
    return x.roll(int(torch.randint(-2, 3, (1,))), -1) + 0.1 * torch.randn_like(x), y


def evaluate(model, shard):
    import torch
    from torch.nn import functional

    with torch.no_grad():
        return torch.cat([functional.cross_entropy(model(x), y, reduction="none") for x, y in shard])


def run_cases(path):
    """Train many cases in one launch: one group of ranks, one `Trial` after another."""
    from parsl_rasda.protocol import JobSpec
    from parsl_rasda.runtime.attempt.attempt import Attempt, PreemptRequested
    from parsl_rasda.runtime.attempt.launch_context import launch_context
    from parsl_rasda.runtime.trial import Trial
    from parsl_rasda.types import Outcome

    group = None
    for order_path in sorted(Path(path).glob("*/order.json")):
        order = JobSpec.load(order_path)
        attempt = Attempt(order, launch_context(order, os.environ))
        trial = Trial(attempt)
        if group is not None:
            trial._group = group
        outcome = Outcome.REACHED
        try:
            learn(trial)
        except PreemptRequested:
            outcome = Outcome.PREEMPTED
        group = trial._group
        if attempt.is_main:
            attempt.close(outcome)
        group.agree([0])  # the next case may read what this one wrote
    os._exit(0)


if __name__ == "__main__":
    run_cases(sys.argv[1])
