"""What one GPU does: the same bits at 1, 2 and 4 ranks, and what sums, precisions and checkpoints cost.

    python benchmarks/gpu.py [--epochs 6] [--channels 64] [--out benchmarks/results/gpu.json]

R = 4 replicas of 16 samples. Ranks share the first GPU and speak gloo, for NCCL has one rank on each: what is
shown is correctness, and times of one rank; times of several are of this arrangement only. The time of
an epoch is the median of all but the first. The exit status is 1 if any bit differs between widths.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

import torch  # noqa: E402
from claims import conclude  # noqa: E402
from gpu_functions import trained  # noqa: E402 - the tests' own launches
from rank_launch import epochs_of, metrics_of  # noqa: E402
from width_cases import differing, final_state  # noqa: E402

CASES = {
    "exact-fp32": {"reduce": "exact"},
    "ddp-fp32": {"reduce": "ddp"},
    "exact-bf16": {"reduce": "exact", "precision": "bf16"},
    "exact-fp16": {"reduce": "exact", "precision": "fp16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--accelerator", default="cuda", help="cpu: to try this script")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: measured(Path(folder) / name, training, arguments) for name, training in CASES.items()}
    result = {
        "what": "4 replicas of 16 images of 3 x 32 x 32; ranks share one GPU and speak gloo",
        "device": torch.cuda.get_device_name() if arguments.accelerator == "cuda" else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "epochs": arguments.epochs,
        "channels": arguments.channels,
        "samples": arguments.samples,
        "cases": rows,
    }
    claims = {
        f"{name}: the same bits": row["same_bits"] for name, row in rows.items() if name.startswith("exact")
    }
    conclude(result, claims, arguments.out)


def measured(folder: Path, training: dict[str, str], arguments: argparse.Namespace) -> dict[str, object]:
    """Return the times of a case, and whether its widths agree to the bit."""
    orders = {
        width: trained(
            folder / str(width),
            width,
            accelerator=arguments.accelerator,
            config={"channels": arguments.channels, "samples": arguments.samples},
            training=training,
            until=arguments.epochs,
            max_epochs=arguments.epochs,
        )
        for width in (1, 2, 4)
    }
    alone = orders[1]
    return {
        "same_bits": all(
            metrics_of(order) == metrics_of(alone) and not differing(final_state(order), final_state(alone))
            for order in orders.values()
        ),
        "epoch_s": {
            f"W={width}": round(statistics.median(r.seconds for r in epochs_of(order)[1:]), 4)
            for width, order in orders.items()
        },
        "val_loss": metrics_of(alone)[-1]["val_loss"],
    }


if __name__ == "__main__":
    main()
