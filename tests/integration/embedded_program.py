"""Somebody's own Parsl program, with our search between their apps: `embedded_program.py threads|htex`."""

import sys

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider

from parsl_rasda import Slots, Study, tune

STUDY = Study(
    tune={
        "metric": "val_loss",
        "num_samples": 6,
        "scheduler": {"max_t": 4, "max_workers": 4},
        "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
        "training": {"python": "workflows.emulated.train:train"},
    }
)


@parsl.python_app(executors=["cpu"])
def simulate(points: int) -> dict[str, float]:
    return {"points": points, "epoch_s": 0.05}


@parsl.python_app(executors=["cpu"])
def evaluate(best: dict[str, object]) -> str:
    return f"trial {best['trial']} reached epoch {best['epoch']} with lr {best['config']['lr']:.4f}"


gpu = ThreadPoolExecutor(label="gpu", max_threads=4)
if sys.argv[1] == "htex":
    workers = {"max_workers_per_node": 4, "cores_per_worker": 1e-9}
    gpu = HighThroughputExecutor(label="gpu", address="127.0.0.1", provider=LocalProvider(), **workers)
with parsl.load(Config(executors=[gpu, ThreadPoolExecutor(label="cpu", max_threads=1)], usage_tracking=0)):
    slots = Slots("gpu", gpus_per_node=4, accelerator="none", mpi_launcher="process")
    best = tune(STUDY, slots=slots, directory="run", data=simulate(100))
    print(evaluate(best).result())
