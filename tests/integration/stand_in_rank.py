#!/usr/bin/env python3
"""A rank without torch: speaks the protocol in a few milliseconds, and dies as it is told to.

A site names it as its `python`; it gets ``-m parsl_rasda.runtime ORDER``. The trial's config scripts
it: ``epoch_s``; ``die`` {"epoch", "rank", "signal"}; ``raise`` {"epoch"}; ``deaf``: ignores everything.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

ctypes.CDLL(None).prctl(1, signal.SIGKILL)
order = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
here = Path(order["directory"])
rank = int(
    os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("SLURM_PROCID", "0")))
)
config = order["config"]
control = os.dup(1)
os.dup2(2, 1)
told: list[dict] = []
done = here / "done"


def on_signal(number, frame):
    told.append({"op": "preempt"})


if config.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)


def say(op, **fields):
    os.write(control, b"\x1e" + json.dumps({"op": op, **fields}).encode() + b"\n")


def head():
    return {
        "trial": order["trial"],
        "attempt": order["attempt"],
        "format": order["format"],
        "at": time.time(),
    }


def end(outcome, epoch, cause="", traceback=""):
    report = {**head(), "outcome": outcome, "epoch": epoch, "cause": cause, "traceback": traceback}
    report["checkpoint"] = f"{here}/epoch-{epoch:06d}" if epoch else None
    (here / "report.json").write_text(json.dumps(report))
    say("bye", **report)
    done.touch()
    os._exit(0 if outcome != "failed" else 1)


def listen(timeout):
    """Wait for up to so long, or for a message."""
    global unread
    if not config.get("deaf") and not told and select.select([0], [], [], timeout)[0]:
        unread += os.read(0, 65536)
        *lines, unread = unread.split(b"\n")
        told.extend(m for m in map(json.loads, lines) if m["op"] != "beat")
    elif config.get("deaf"):
        time.sleep(timeout)


unread = b""
(here / f"rank-{rank}.json").write_text(json.dumps({"pid": os.getpid(), "slots": order["slots"]}))
epoch, until = order["epoch"], order["until"]
if rank == 0:
    print("hello from the ranks", file=sys.stderr, flush=True)
    say("ready", at=time.time())
while rank != 0 and not done.exists():
    die = config.get("die")
    if die and die["rank"] == rank and (here / "epochs.jsonl").exists():
        os.kill(os.getpid(), die["signal"])
    time.sleep(0.02)
if rank != 0:
    os._exit(0)
while True:
    end_of_epoch = time.time() + config.get("epoch_s", 0.05)
    while time.time() < end_of_epoch:
        listen(max(0.0, min(0.02, end_of_epoch - time.time())))
        if told and told[0]["op"] in ("leave", "preempt"):
            end("preempted", epoch)
    if config.get("raise", {}).get("epoch") == epoch + 1:
        end("failed", epoch, "ValueError: the user's own line", "Traceback ...")
    epoch += 1
    report = {**head(), "epoch": epoch, "metrics": {"loss": 1.0 / epoch}, "seconds": 0.05}
    report |= {"checkpoint": f"{here}/epoch-{epoch:06d}", "slots": order["slots"]}
    with (here / "epochs.jsonl").open("a") as file:
        file.write(json.dumps(report) + "\n")
    die = config.get("die")
    if die and die["rank"] == 0 and die["epoch"] == epoch:
        os.kill(os.getpid(), die["signal"])
    say("epoch", **report)
    while order["interactive"] and not told:
        listen(0.05)
    answer = told.pop(0) if told else {"op": "go", "until": until}
    if answer["op"] != "go":
        end("reached", epoch)
    until = answer["until"]
    if not order["interactive"] and epoch >= until:
        end("reached", epoch)
