"""What the ranks of `audit_script.py` have left behind, held against where the ledger wanted them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from parsl_rasda.protocol import JobSpec, read_report
from parsl_rasda.types import Outcome

HERE = Path(__file__).parent
AUDIT = {
    "command": [
        *(sys.executable, str(HERE / "audit_script.py"), "--lr", "{lr}", "--seconds", "0.3"),
        *("--epoch", "{epoch}", "--until", "{until}", "--report", "{report}"),
    ]
}


def ranks_of(directory: Path) -> Iterator[tuple[JobSpec, list[dict[str, Any]]]]:
    """Yield every attempt that ran a script to its end, with what its ranks have seen."""
    for path in sorted(directory.glob("trials/*/attempt-*/order.json")):
        order = JobSpec.load(path)
        report = read_report(path.parent, order.job)
        ranks = [json.loads(rank.read_text()) for rank in path.parent.glob("rank-*.json")]
        if ranks and report is not None and report.outcome is Outcome.REACHED:
            yield order, sorted(ranks, key=lambda r: int(r["rank"]))


def audit(directory: Path, mask: str) -> set[int]:
    """Check every rank against its placement, and every GPU against time; return the widths seen."""
    uses: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    widths = set()
    for order, ranks in ranks_of(directory):
        widths.add(order.world_size)
        assert len(ranks) == order.world_size == len(order.slots)
        by_node: dict[str, list[str]] = {}
        for slot in order.slots:
            by_node.setdefault(slot.partition(":")[0], []).append(slot.partition(":")[2])
        for rank, slot in zip(ranks, order.slots, strict=True):
            node, gpu = slot.split(":")
            assert rank["node"] == node, "the rank is where the ledger put it"
            assert rank["masks"][mask].split(",") == by_node[node], "it sees its trial's GPUs and no others"
            assert rank["masks"][mask].split(",")[rank["local_rank"]] == gpu, (
                "its own is the one it was given"
            )
            uses.setdefault((node, gpu), []).append((rank["began"], rank["ended"], str(order.job)))
    for gpu, times in uses.items():
        for (_, ended, one), (began, _, other) in pairwise(sorted(times)):
            assert ended <= began, f"{gpu} was used by {one} and {other} at a time"
    return widths
