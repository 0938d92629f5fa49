"""A Parsl program that ends while its search runs: `ending_program.py threads|htex raise|end|exit|finish`."""

import sys
import threading

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider

from parsl_rasda import Slots, Study, tune
from parsl_rasda.orchestration.progress import NoProgress


class UntilAnEpoch(NoProgress):
    """Says when the first epoch is over."""

    def __init__(self) -> None:
        self.seen = threading.Event()

    def add(self, event: object, instructions: object) -> None:
        if type(event).__name__ == "EpochReported":
            self.seen.set()


kind, way = sys.argv[1:]
STUDY = Study(
    tune={
        "metric": "val_loss",
        "num_samples": 2,
        "max_retries": 0,
        "scheduler": {"max_t": 16, "grace_period": 16},
        "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
        "training": {"python": "workflows.emulated.train:train"},
    },
    name="ending",
)
if kind == "threads":
    gpu = ThreadPoolExecutor(label="gpu", max_threads=4)
else:
    workers = {"max_workers_per_node": 4, "cores_per_worker": 1e-9}
    gpu = HighThroughputExecutor(label="gpu", address="127.0.0.1", provider=LocalProvider(), **workers)
kernel = parsl.load(Config([gpu], usage_tracking=0, initialize_logging=False))
view, slots = UntilAnEpoch(), Slots("gpu", gpus_per_node=1, accelerator="none", mpi_launcher="process")
best = tune(STUDY, slots=slots, directory="run", progress=view, epoch_s=0.25)
waits = tune(STUDY, slots=slots, directory="next", epoch_s=0.25) if way != "finish" else None
if way != "finish" and not view.seen.wait(240):
    kernel.cleanup()  # else the workers of HTEX outlive us
    sys.exit("no epoch came")
match way:
    case "raise":
        with kernel:
            raise KeyboardInterrupt
    case "exit":
        sys.exit(7)
    case "finish":
        with kernel:
            print(best.result()["epoch"])
