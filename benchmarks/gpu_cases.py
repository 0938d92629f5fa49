"""The cases of `benchmarks/gpu.py`: each runs in a process of its own and tells its figures in one line."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_models import MODELS, Flat, resnet50, samples_of, small_cnn, train, transformer

from parsl_rasda.runtime.checkpoints.checkpoint import checkpoint_name

__all__ = ["train"]  # the ranks' function


@dataclass(frozen=True)
class Case:
    """What a case is run with.

    Attributes:
        accelerator: As in a site file.
        folder: An empty folder.
        small: Whether this is a rehearsal.
    """

    accelerator: str
    folder: Path
    small: bool

    @property
    def device(self) -> Any:
        import torch

        return torch.device({"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0"}.get(self.accelerator, "cpu"))

    def size(self, real: int, small: int) -> int:
        return small if self.small else real

    def sync(self) -> None:
        import torch

        if self.accelerator != "cpu":
            torch.accelerator.synchronize()

    def peak_gb(self) -> float | None:
        """Return the most memory that tensors have taken since the last call [GB]; None on the CPU."""
        import torch

        if self.accelerator == "cpu":
            return None
        module = torch.get_device_module(self.device)
        peak = module.max_memory_allocated() / 1e9
        module.reset_peak_memory_stats()
        return round(peak, 2)

    def order(self, name: str, world_size: int = 1, **changes: Any) -> Any:
        """Write an order for `train`, and return it."""
        from rank_launch import written_order

        from parsl_rasda.protocol import Training

        training = {"batch_size": self.size(32, 4), "reduce": "exact", **changes.pop("training", {})}
        return written_order(
            self.folder / name,
            world_size=world_size,
            python="gpu_cases:train",
            accelerator=self.accelerator,
            slots=(),
            training=Training(**training),
            config={"model": "cnn", "samples": self.size(512, 32), **changes.pop("config", {})},
            **changes,
        )

    def trained(self, node: Any, order: Any) -> Any:
        """Train to the end of an order on ranks that share the GPU; returns the order."""
        status, log = node.finished(order)
        if status:
            raise RuntimeError(log[-1500:])
        return order


def fork_server() -> Any:
    """Return what starts ranks behind a fork server of its own, as a site does."""
    from forked_ranks import Node

    from parsl_rasda.devices import BACKEND_VARIABLE

    return Node(idle_s=60.0, **{BACKEND_VARIABLE: "gloo"})


def told(figures: dict[str, Any], **claims: bool) -> dict[str, Any]:
    return {"figures": figures, "claims": claims}


# -------------------------------------------------------------------------------------------- the cases


def restarts(case: Case) -> dict[str, Any]:
    """How long a rank takes to its first step: started plainly, forked, and resized from one rank to two."""
    from rank_launch import epochs_of, rank_command, report_of

    seconds: dict[str, float] = {}
    with fork_server() as node:

        def launched(name: str, order: Any, **options: Any) -> Any:
            began = time.monotonic()
            status, log = node.finished(order, **options)
            if status:
                raise RuntimeError(log[-1500:])
            spent = sum(report.seconds for report in epochs_of(order))
            seconds[name] = round(time.monotonic() - began - spent, 2)
            return order

        plain = case.order("plain", until=1)
        launched("plain", plain, program=rank_command(plain))
        launched("server starts", case.order("server", until=1))
        first = launched("forked", case.order("forked", until=1))
        resumed = {"epoch": 1, "until": 2, "resume_from": report_of(first).checkpoint.path}
        launched("forked and resized to 2", case.order("resized", 2, **resumed))
        forked = bool(node.servers())
    return told({"seconds_besides_epochs": seconds, "served": forked}, fork_server_serves=forked)


def bits(case: Case) -> dict[str, Any]:
    """Whether the bits are the same on two ranks, and on four that go on where one has been for an epoch."""
    same = {}
    with fork_server() as node:
        for name in MODELS:
            same[f"same_bits_{name}"] = has_same_bits(case, node, name)
    return told({"models": len(same)}, **same)


def has_same_bits(case: Case, node: Any, name: str) -> bool:
    from rank_launch import metrics_of
    from width_cases import differing, final_state

    config = {"model": name}
    alone = case.trained(node, case.order(f"{name}-1", until=2, config=config))
    middle = str(Path(alone.directory) / checkpoint_name(1))
    two = case.trained(node, case.order(f"{name}-2", 2, until=2, config=config))
    resumed = case.order(f"{name}-4", 4, epoch=1, until=2, resume_from=middle, config=config)
    four = case.trained(node, resumed)
    is_same = all(differing(final_state(order), final_state(alone)) == [] for order in (two, four))
    return is_same and metrics_of(alone) == metrics_of(two) == [*metrics_of(alone)[:1], *metrics_of(four)]


def steps(case: Case) -> dict[str, Any]:
    """What a step takes beside a plain loop's."""
    import torch

    torch.set_num_threads(1)  # as in a trial
    words = (64, 16, 2) if case.small else (32000, 768, 12)
    builds: dict[str, tuple[Callable[[], Any], str, int]] = {
        "resnet50": (lambda: resnet50(case.size(64, 4)), "bf16", case.size(64, 2)),
        "small_cnn": (lambda: small_cnn(case.size(64, 8)), "fp32", case.size(64, 4)),
        "transformer": (lambda: transformer(*words), "bf16", case.size(8, 2)),
    }
    data = {
        name: samples_of(name, batch * case.size(30, 6), small=case.small)
        for name, (_, _, batch) in builds.items()
    }
    # All plain loops come first: a trial asks torch for deterministic kernels, for the whole process.
    plain = {n: plain_ms(case, build(), data[n], batch, kind) for n, (build, kind, batch) in builds.items()}
    ours = {
        n: trial_ms(case, build(), data[n], batch, precision=kind)
        for n, (build, kind, batch) in builds.items()
    }
    ratios = {name: round(ours[name] / plain[name], 3) for name in builds}
    claims = {f"{name}_within_1.15": ratio <= 1.15 for name, ratio in ratios.items()}
    return told({"plain_ms": plain, "ours_ms": ours, "ratio": ratios}, **({} if case.small else claims))


def exchange(case: Case) -> dict[str, Any]:
    """What this rank of eight does for an exact sum, with a stand-in for the others."""
    figures = {}
    for name, count in (("25M", case.size(25, 1)), ("1B", case.size(1000, 2))):
        found: dict[str, Any] = {}
        for ranks in (1, 8):
            case.peak_gb()
            flat = Flat(count, 10**6 if not case.small else 1000)
            found[f"step_ms_{ranks}"] = trial_ms(case, flat, samples_of("flat", ranks * 8), 1, ranks=ranks)
            found[f"peak_gb_{ranks}"] = case.peak_gb()
        figures[name] = found
    return told(figures)


def kill(case: Case) -> dict[str, Any]:
    """Whether a trial trains at once on the GPU where another was killed."""
    from backend_tools import eventually

    with fork_server() as node:
        order = case.order("killed", until=10_000, max_epochs=10_000)
        process = node.start(order)
        eventually((case.folder / "killed" / "epochs.jsonl").exists, "it trains", 50)
        os.kill(int((case.folder / "killed" / "scratch" / "pid").read_text()), signal.SIGKILL)
        ended = process.wait(20)
        began = time.monotonic()
        case.trained(node, case.order("next", until=1))
        seconds = round(time.monotonic() - began, 2)
    return told({"next_trial_s": seconds}, killed=ended == -signal.SIGKILL)


def memory(case: Case) -> dict[str, Any]:
    """How a trial ends for which the GPU is too small, and whether the next one trains."""
    from rank_launch import report_of

    with fork_server() as node:
        order = case.order("large", until=1, config={"allocate": True})
        status, _ = node.finished(order)
        report = report_of(order)
        case.trained(node, case.order("next", until=1))
    is_told = case.accelerator == "cpu" or "training.batch_size" in report.cause
    return told({"cause": report.cause[:300]}, failed=status != 0, told_what_to_change=is_told)


def checkpoint(case: Case) -> dict[str, Any]:
    """How long an epoch's report blocks training, with the state of AdamW."""
    import torch

    trial = local(case, epochs=3, directory=case.folder / "trial")
    flat = Flat(case.size(1000, 2), 10**6 if not case.small else 1000)
    model, _ = trial.prepare(flat, torch.optim.AdamW, lr=1e-4)
    blocked = []
    for epoch in trial.epochs():
        for x in trial.batches(samples_of("flat", 2)):
            trial.step(model(x))
        case.sync()
        began = time.monotonic()
        trial.report(val_loss=0.0)
        blocked.append(round(time.monotonic() - began, 3))
        if epoch == 1:
            break  # the third epoch's would wait until it is on disk
    return told({"parameters": sum(p.numel() for p in model.parameters()), "blocked_s": blocked})


def input(case: Case) -> dict[str, Any]:  # noqa: A001  # a case of this name
    """How many images a second reach the device."""
    from gpu_models import Images

    count, side = case.size(2048, 32), case.size(224, 8)
    images = Images(count, side)
    figures = {}
    for name, data, workers in (
        ("arrays", (images.pixels, images.labels), 0),
        ("one by one", images, 0),
        ("4 workers" if not case.small else "1 worker", images, case.size(4, 1)),
    ):
        trial = local(case, epochs=3, batch_size=case.size(64, 8))
        model, _ = trial.prepare(Flat(1, 10), sgd, lr=0.0)
        spent = []
        for _ in trial.epochs():
            began = time.monotonic()
            for x, _ in trial.batches(data, workers=workers):
                trial.step(model(x))
            case.sync()
            spent.append(time.monotonic() - began)
            trial.report(val_loss=0.0)
        figures[name] = {
            "first_epoch": round(count / spent[0]),
            "later_epochs": round(count / min(spent[1:])),
        }
    return told({"images_per_s": figures, "side": side})


def compile(case: Case) -> dict[str, Any]:  # noqa: A001  # a case of this name
    """What `training.compile` gains, and what its first step takes."""
    from torch import nn

    def build() -> Any:  # a rehearsal has little for the C++ compiler
        small = nn.Embedding(64, 8), nn.Linear(8, 64)
        return nn.Sequential(*small) if case.small else transformer(32000, 768, 12)

    batch = case.size(8, 2)
    data = samples_of("transformer", batch * case.size(30, 4), small=case.small)
    eager = trial_ms(case, build(), data, batch, precision="bf16")
    began = time.monotonic()
    compiled = trial_ms(case, build(), data, batch, precision="bf16", compile=True)
    took = round(time.monotonic() - began, 1)
    return told({"eager_ms": eager, "compiled_ms": compiled, "with_compilation_s": took})


# --------------------------------------------------------------------------------------- what they share


def sgd(parameters: Any, lr: float) -> Any:
    import torch

    return torch.optim.SGD(parameters, lr, momentum=0.9)


def local(case: Case, **options: Any) -> Any:
    from parsl_rasda.runtime import local_trial

    return local_trial({}, accelerator=case.accelerator, **{"batch_size": 1, **options})


def plain_ms(case: Case, model: Any, data: Any, batch: int, precision: str) -> float:
    """Return the median step of a loop as anybody would write it [ms]."""
    import torch

    model.to(case.device)
    optimizer = sgd(model.parameters(), 0.01)
    inputs, targets = (part.to(case.device) for part in data)
    times = []
    for first in range(0, len(inputs), batch):
        case.sync()
        began = time.monotonic()
        optimizer.zero_grad()
        with torch.autocast(case.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(inputs[first : first + batch])
        loss_of(output.float(), targets[first : first + batch]).backward()
        optimizer.step()
        case.sync()
        times.append(time.monotonic() - began)
    return median_ms(times)


def trial_ms(case: Case, model: Any, data: Any, batch: int, *, ranks: int = 1, **training: Any) -> float:
    """Return the median step of a trial [ms], as one of so many ranks, the others of which are made up."""
    trial = local(case, batch_size=batch, replicas=ranks, **training)
    if ranks > 1:
        trial._group = stand_in(trial, ranks)
    model, _ = trial.prepare(model, sgd, lr=0.01)
    times: list[float] = []
    for _ in trial.epochs():
        case.sync()
        began = time.monotonic()
        for part in trial.batches(data):
            trial.step(loss_of(model(part[0]), part[1]) if isinstance(part, tuple | list) else model(part))
            case.sync()
            times.append(time.monotonic() - began)
            began = time.monotonic()
        trial.report(val_loss=0.0)
    return median_ms(times)


def stand_in(trial: Any, size: int) -> Any:
    """Return a group of which this process is the first rank: the others have nothing to add."""
    from parsl_rasda.runtime.engine.group import Group

    class StandIn(Group):
        def start_swap(self, mine: Any, theirs: Any, *_: Any) -> Callable[[], None]:
            theirs.zero_()
            return lambda: None

        def start_sum(self, tensor: Any) -> None:
            """Leave it: the others have nothing."""

        def agree(self, numbers: Any) -> tuple[int, ...]:
            return tuple(numbers)

        def sum(self, numbers: Any) -> list[float]:
            return list(numbers)

        def broadcast(self, tensors: Any) -> None:
            """Leave them: this is the first rank."""

    group = StandIn(0, 1, trial.device, trial.directory, one_node=True)
    group.size = size
    return group


def loss_of(output: Any, targets: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(output.flatten(0, -2), targets.flatten())


def median_ms(times: list[float]) -> float:
    """Return the median of all but the first few [ms]."""
    return round(1e3 * statistics.median(times[min(5, len(times) // 2) :]), 2)


if __name__ == "__main__":
    name, accelerator, folder, *rest = sys.argv[1:]
    print("result: " + json.dumps(globals()[name](Case(accelerator, Path(folder), bool(rest)))), flush=True)
