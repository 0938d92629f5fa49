"""Somebody's training script: knows argparse and torchrun's variables, and nothing of parsl_rasda."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
parser.add_argument("--resume", default="")
parser.add_argument("--save")
parser.add_argument("--out")
parser.add_argument("--fail", default="")
arguments = parser.parse_args()


def finish(epoch):
    if os.environ["RANK"] == "0":
        (Path(arguments.save) / "state.json").write_text(json.dumps({"epoch": epoch}))
        Path(arguments.out).write_text(
            json.dumps({"val_loss": arguments.lr / epoch, "epoch": epoch}), encoding="utf-8"
        )
    sys.exit(0)


start = json.loads((Path(arguments.resume) / "state.json").read_text())["epoch"] if arguments.resume else 0
variables = {
    name: os.environ.get(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
}
place = Path(arguments.out).parent
(place / f"rank-{os.environ['RANK']}.json").write_text(json.dumps({**variables, "start": start}))
if arguments.fail == "crash" and os.environ["RANK"] == os.environ["CRASHING_RANK"]:
    raise RuntimeError("no such data set")
if arguments.fail == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if arguments.fail == "slow":
    signal.signal(signal.SIGTERM, lambda *_: finish(start + 1))
    (place / "sleeping").touch()
    time.sleep(600)
finish(arguments.epochs)
