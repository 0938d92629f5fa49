"""What the number of ranks changes in a trial's numbers: nothing, or how much, epoch by epoch.

    python benchmarks/width.py [--epochs 40] [--out benchmarks/results/width.json]

R = 4 replicas at 1, 2 and 4 ranks, and resized 1 -> 2 -> (in mid-epoch) 4: a network with convolutions, batch
normalisation and dropout, augmentation, clipping, warm-up, 203 or 194 samples at 8 a replica. `exact` must
agree bit for bit, `ddp` in fp64 to rounding; in fp32 its rounding is amplified, which the curve shows.
`largest_of_state` is the largest, over all tensors of model and optimizer, of |there - here| / |here| in the
Euclidean norm. The exit status is 1 if exact cases differ in a bit or fp64 ones by more than 2e-14 in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

import torch  # noqa: E402
from claims import conclude  # noqa: E402
from rank_launch import metrics_of  # noqa: E402 - the tests' own launches
from width_cases import differing, distance, final_state, legs_of, train_everywhere  # noqa: E402

ROUNDING = 2e-14  # about 100 units in the last place, after 40 epochs
CASES = {
    f"{reduce}-{optimizer}-{dtype}": {
        "optimizer": optimizer,
        "dtype": dtype,
        "samples": 203 if optimizer == "sgd" else 194,
        "lr": 0.02 if optimizer == "sgd" else 2e-3,
    }
    for reduce in ("exact", "ddp")
    for optimizer in ("sgd", "adamw")
    for dtype in ("float32", "float64")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        orders = train_everywhere(Path(folder), CASES, arguments.epochs)
        rows = {name: compared(orders, name) for name in CASES}
    result = {
        "what": "relative difference to one rank, R = 4",
        "epochs": arguments.epochs,
        "torch": torch.__version__,
        "cases": rows,
    }
    claims = {name: all(holds(name, found) for found in widths.values()) for name, widths in rows.items()}
    conclude(result, claims, arguments.out)


def holds(name: str, found) -> bool:
    """Return whether a case does what is promised of it."""
    if name.startswith("exact"):
        return found["same_bits"]
    return not name.endswith("float64") or found["largest_of_state"] <= ROUNDING


def compared(orders, name: str) -> dict[str, object]:
    alone = orders[name, "W=1"]
    others = {
        "W=2": [orders[name, "W=2"]],
        "W=4": [orders[name, "W=4"]],
        "1->2->4": legs_of(orders, name),
    }
    found: dict[str, object] = {}
    for key, legs in others.items():
        state, whole = final_state(legs[-1]), final_state(alone)
        curve = [
            max(relative(there[k], here[k]) for k in here)
            for here, there in zip(metrics_of(alone), metrics_of(*legs), strict=True)
        ]
        found[key] = {
            "same_bits": not differing(state, whole) and metrics_of(alone) == metrics_of(*legs),
            "largest_of_losses": max(curve),
            "largest_of_state": max(distance(state[n], whole[n]) for n in whole),
        }
        if name.startswith("ddp"):
            found[key]["losses_by_epoch"] = [float(f"{value:.1e}") for value in curve]
    return found


def relative(there: float, here: float) -> float:
    return abs(there - here) / abs(here)


if __name__ == "__main__":
    main()
