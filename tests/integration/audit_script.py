"""A training script, each of whose ranks writes down where it was, on which GPUs, and when."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--epoch", type=int)
parser.add_argument("--until", type=int)
parser.add_argument("--seconds", type=float, default=0.0)
parser.add_argument("--until-there", type=Path, help="train until there is such a file")
parser.add_argument("--report")
arguments = parser.parse_args()

began = time.time()
rank = int(os.environ["RANK"])
place = Path(arguments.report).parent
(place / f"began-{rank}").touch()
time.sleep(arguments.seconds)
while arguments.until_there is not None and not arguments.until_there.exists():
    time.sleep(0.05)
seen = {
    "rank": rank,
    "local_rank": int(os.environ["LOCAL_RANK"]),
    "world_size": int(os.environ["WORLD_SIZE"]),
    "node": os.environ.get("SLURMD_NODENAME") or os.environ.get("FAKE_HOST"),
    "masks": {name: os.environ[name] for name in MASKS if name in os.environ},
    "proxies": [os.environ.get(name) for name in ("http_proxy", "https_proxy")],
    "cores": sorted(os.sched_getaffinity(0)),
    "began": began,
    "ended": time.time(),
}
(place / f"rank-{rank}.json").write_text(json.dumps(seen))
if rank == 0:
    loss = abs(arguments.lr - 0.01) + 1.0 / arguments.until
    Path(arguments.report).write_text(json.dumps({"val_loss": loss}), encoding="utf-8")
