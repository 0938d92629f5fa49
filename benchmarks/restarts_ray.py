"""How long Ray Tune's ResourceChangingScheduler lets a trial stand still at a resize; run by restarts.py.

Needs a Python with `ray[tune]` and torch. Prints one line of JSON: seconds from the report to the start of
the resized function, and for `TorchTrainer` to its first step done, between 1 and 2 logical GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_TRAIN_V2_ENABLED="0",  # V2 trainers cannot be resized by the scheduler
    RAY_AIR_NEW_OUTPUT="0",
)
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # ray prints warnings on stdout

import ray  # noqa: E402 - its variables come first
from ray import tune  # noqa: E402
from ray.tune.execution.placement_groups import PlacementGroupFactory  # noqa: E402
from ray.tune.schedulers import FIFOScheduler, ResourceChangingScheduler  # noqa: E402

EPOCH_S = 0.1


def note(path: str, what: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{what} {time.time()}\n")


def report_with(report, epoch: int, checkpoint_class, log: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "epoch").write_text(str(epoch), encoding="utf-8")
        checkpoint = checkpoint_class.from_directory(folder)
        note(log, "report")
        report({"epoch": epoch}, checkpoint=checkpoint)


def resumed_epoch(checkpoint) -> int:
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return int((Path(folder) / "epoch").read_text(encoding="utf-8"))


def function(config) -> None:
    """An empty trainable: what Ray alone costs."""
    epoch = resumed_epoch(tune.get_checkpoint())
    note(config["log"], "first")
    while epoch < config["epochs"]:
        time.sleep(EPOCH_S)
        epoch += 1
        report_with(tune.report, epoch, tune.Checkpoint, config["log"])


def torch_loop(config) -> None:
    """One DDP step an epoch."""
    import torch
    from ray import train

    epoch, rank = resumed_epoch(train.get_checkpoint()), train.get_context().get_world_rank()
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    model(torch.randn(4, 8)).sum().backward()
    if rank == 0:
        note(config["log"], "first")
    while epoch < config["epochs"]:
        time.sleep(EPOCH_S)
        epoch += 1
        if rank == 0:
            report_with(train.report, epoch, train.Checkpoint, config["log"])
        else:
            train.report({"epoch": epoch})


def alternate(_controller, _trial, result, _scheduler):
    """Ask for two GPUs after odd epochs, for one after even ones."""
    return PlacementGroupFactory([{"CPU": 1, "GPU": 1}] * (1 + result["epoch"] % 2))


def alternate_trainer(controller, trial, result, scheduler):
    resources = alternate(controller, trial, result, scheduler)
    resources._head_bundle_is_empty = True  # the trainer itself takes nothing; Ray offers no public way
    return resources


def restarts(kind: str, repeats: int, folder: Path) -> dict[str, object]:
    log = folder / f"{kind}.log"
    config = {"log": str(log), "epochs": repeats + 1}
    allocate = alternate
    if kind == "function":
        trainable = tune.with_resources(function, PlacementGroupFactory([{"CPU": 1, "GPU": 1}]))
        run_config = tune.RunConfig(name=kind, storage_path=str(folder), verbose=0)
        space = config
    else:
        from ray.air import RunConfig
        from ray.air.config import ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        scaling = ScalingConfig(
            trainer_resources={"CPU": 0},
            num_workers=1,
            use_gpu=True,
            resources_per_worker={"CPU": 1, "GPU": 1},
        )
        trainable = TorchTrainer(torch_loop, scaling_config=scaling, torch_config=TorchConfig(backend="gloo"))
        run_config = RunConfig(name=kind, storage_path=str(folder), verbose=0)
        space = {"train_loop_config": config}
        allocate = alternate_trainer
    scheduler = ResourceChangingScheduler(FIFOScheduler(), resources_allocation_function=allocate)
    tune_config = tune.TuneConfig(metric="epoch", mode="max", scheduler=scheduler)
    tune.Tuner(trainable, param_space=space, tune_config=tune_config, run_config=run_config).fit()
    events = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    times = [
        float(after[1]) - float(before[1])
        for before, after in pairwise(events)
        if (before[0], after[0]) == ("report", "first")
    ]
    return {"median_s": round(statistics.median(times), 3), "times_s": [round(t, 3) for t in times]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_gpus=4,
            num_cpus=16,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=200 * 2**20,
            _temp_dir=folder + "/r",
        )
        result = {
            "version": ray.__version__,
            "function": restarts("function", repeats, Path(folder)),
            "torch_trainer": restarts("torch_trainer", max(3, repeats // 4), Path(folder)),
        }
        ray.shutdown()
    print(json.dumps(result), file=OUT, flush=True)


if __name__ == "__main__":
    main()
