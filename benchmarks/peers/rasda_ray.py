"""RASDA and ASHA on Ray Tune's logical GPUs: an emulated study; run by compare.py in the peers' environment.

Trials sleep through their epochs and are stopped by the table of `Case.survivors`, so that every system and
any order of arrival trains the same epochs. RASDA is Ray's `ResourceChangingScheduler` with the allocation of
the paper's reference: twice the GPUs at each milestone. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_AIR_NEW_OUTPUT="0")
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # ray prints warnings on stdout
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

import ray  # noqa: E402 - its variables come first
from emulation import CASES, Case, curve  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.execution.placement_groups import PlacementGroupFactory  # noqa: E402
from ray.tune.schedulers import FIFOScheduler, ResourceChangingScheduler  # noqa: E402


def train(config) -> None:
    """Sleep through the epochs from the last checkpoint on."""
    bundles = tune.get_context().get_trial_resources().bundles
    width = int(sum(bundle.get("GPU", 0) for bundle in bundles))
    epoch, checkpoint = 0, tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            epoch = int((Path(folder) / "epoch").read_text(encoding="utf-8"))
    while epoch < config["max_t"]:
        begin = time.time()
        time.sleep(config["epoch_s"] / width)
        epoch += 1
        note = {"trial": config["trial"], "width": width, "begin": begin, "end": time.time()}
        with Path(config["log"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "epoch").write_text(str(epoch), encoding="utf-8")
            accuracy = curve(config["seed"], config["trial"], epoch)
            tune.report({"accuracy": accuracy}, checkpoint=tune.Checkpoint.from_directory(folder))


def by_table(case: Case) -> FIFOScheduler:
    """Return a scheduler that stops whoever is not among the survivors of a milestone."""
    kept = dict(zip(case.milestones, map(set, [*case.survivors()[1:], ()]), strict=True))

    class Table(FIFOScheduler):
        def on_trial_result(self, controller, trial, result):
            epoch = result["training_iteration"]
            return "STOP" if epoch in kept and trial.config["trial"] not in kept[epoch] else "CONTINUE"

    return Table()


def doubled(case: Case):
    """Return the reference's allocation: twice the GPUs after each milestone."""

    def allocate(_controller, _trial, result, _scheduler):
        epoch = result["training_iteration"]
        if epoch not in case.milestones:
            return None
        width = min(case.slots, 2 ** (case.milestones.index(epoch) + 1))
        return PlacementGroupFactory([{"CPU": 1, "GPU": 1}] * width)

    return allocate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--rasda", action="store_true")
    parser.add_argument("--timeout", type=float, default=420.0)
    given = parser.parse_args()
    case = CASES[given.case]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "epochs.jsonl"
        ray.init(
            num_gpus=case.slots,
            num_cpus=4 * case.slots,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=200 * 2**20,
            _temp_dir=folder + "/r",
        )
        space = {
            "trial": tune.grid_search(list(range(case.trials))),
            "log": str(log),
            "epoch_s": case.epoch_s,
            "max_t": case.max_t,
            "seed": case.seed,
        }
        scheduler = by_table(case)
        if given.rasda:
            scheduler = ResourceChangingScheduler(
                base_scheduler=scheduler, resources_allocation_function=doubled(case)
            )
        tuner = tune.Tuner(
            tune.with_resources(train, PlacementGroupFactory([{"CPU": 1, "GPU": 1}])),
            param_space=space,
            tune_config=tune.TuneConfig(metric="accuracy", mode="max", scheduler=scheduler),
            run_config=tune.RunConfig(name="study", storage_path=folder, verbose=0),
        )
        begin, ended = time.time(), threading.Event()

        def give_up() -> None:
            if not ended.wait(given.timeout):
                say(case, log, begin, timed_out=True)
                os._exit(0)

        threading.Thread(target=give_up, daemon=True).start()
        found = tuner.fit()
        ended.set()
        say(case, log, begin, timed_out=False, errors=found.num_errors)
        ray.shutdown()


def say(case: Case, log: Path, begin: float, **more: object) -> None:
    makespan_s = time.time() - begin
    epochs = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    busy_s = sum(e["width"] * (e["end"] - e["begin"]) for e in epochs)
    found = {
        "makespan_s": round(makespan_s, 2),
        "from_first_epoch_s": round(begin + makespan_s - min(e["begin"] for e in epochs), 2),
        "busy_fraction": round(busy_s / (case.slots * makespan_s), 3),
        "epochs": len(epochs),
        "version": ray.__version__,
        **more,
    }
    print(json.dumps(found), file=OUT, flush=True)


if __name__ == "__main__":
    main()
