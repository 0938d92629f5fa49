"""How long a checkpoint keeps training waiting, when it is written at once and while training goes on.

    python benchmarks/checkpoints.py [--megabytes 256] [--epochs 8] [--out FILE]

One rank, a model and its optimizer of so many megabytes together. The time of an epoch's end is that of
`trial.report`. Odd epochs are waited for, even ones are not; the first, which loads libraries, and the last,
a rung, are left out. The claim: training that is not waited for stands still for less time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from claims import conclude  # noqa: E402
from torch import nn  # noqa: E402

from parsl_rasda.runtime import local_trial  # noqa: E402
from parsl_rasda.runtime import trial as trial_module  # noqa: E402
from parsl_rasda.runtime.checkpoints import saver  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--directory", type=Path, help="on the file system to measure")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        waited, beside = blocked(Path(folder), arguments)
    result = {
        "what": "seconds that the end of an epoch keeps training waiting",
        "megabytes": arguments.megabytes,
        "epochs": arguments.epochs,
        "torch": torch.__version__,
        "written_at_once_s": round(statistics.median(waited), 3),
        "written_beside_training_s": round(statistics.median(beside), 3),
        "all_at_once_s": [round(t, 3) for t in waited],
        "all_beside_training_s": [round(t, 3) for t in beside],
    }
    conclude(
        result,
        {"less time": result["written_beside_training_s"] < result["written_at_once_s"]},
        arguments.out,
    )


def blocked(folder: Path, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the times of `trial.report` with and without waiting for the write."""
    size = int((arguments.megabytes * 2**20 / 8) ** 0.5)  # fp32 weights and momentum
    trial = local_trial({}, epochs=arguments.epochs + 1, batch_size=1, directory=folder)
    model, _ = trial.prepare(
        nn.Linear(size, size, bias=False), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), lr=1e-3
    )
    times: dict[float | None, list[float]] = {None: [], saver.MOMENT_S: []}
    for epoch in trial.epochs():
        for (x,) in trial.batches((torch.ones(1, size),)):
            trial.step(model(x).square().mean())
        trial._saver.finish()  # an epoch takes longer than a write, or else waits for it
        patience_s = (saver.MOMENT_S, None)[epoch % 2]
        trial_module.MOMENT_S = patience_s
        began = time.monotonic()
        trial.report(val_loss=0.0)
        times[patience_s].append(time.monotonic() - began)
    return times[None], times[saver.MOMENT_S][1:-1]  # the first imports torch's checkpoints, the last waits


if __name__ == "__main__":
    main()
