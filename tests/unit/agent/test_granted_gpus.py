"""GPUs by node, from what batch systems say of a job."""

from __future__ import annotations

import json

import pytest

from parsl_rasda.agent import pbs, slurm


def expand(nodes: str) -> list[str]:
    return {"n[0-1]": ["n0", "n1"], "g[7,9]": ["g7", "g9"]}.get(nodes, [nodes])


@pytest.mark.parametrize(
    ("shown", "granted"),
    [
        ("JobId=7 Nodes=n[0-1] CPU_IDs=0-31 Mem=0 GRES=gpu:4(IDX:0-3) Command=x", {"n0": 4, "n1": 4}),
        (
            "Nodes=n0 CPU_IDs=0-3 Mem=0 GRES=gpu:a100:4(IDX:0-3) Nodes=g[7,9] CPU_IDs=0 Mem=1 "
            "GRES=gpu:a100:1(IDX:0),gpu:h100:1(IDX:1),nic:2(IDX:0-1)",
            {"n0": 4, "g7": 2, "g9": 2},
        ),
        ("NodeList=n[0-1] Nodes=n[0-1] CPU_IDs=0-31 Mem=0 GRES= Command=x", {"n0": 0, "n1": 0}),
        ("", None),
        ("JobId=7 JobState=PENDING", None),
    ],
)
def test_slurm_names_the_gpus_of_each_node(shown: str, granted: dict[str, int] | None) -> None:
    assert slurm.read_granted_gpus(shown, expand) == granted


@pytest.mark.parametrize(
    ("vnodes", "granted"),
    [
        ("(n1:ncpus=64:ngpus=4)+(n2:ncpus=64:ngpus=8)", {"n1": 4, "n2": 8}),
        ("(n1[0]:ngpus=2:mem=1gb+n1[1]:ncpus=4)+(n1[1]:ncpus=4:ngpus=2)", {"n1": 4}),
        ("(n1:ncpus=64)", None),
        (None, None),
    ],
)
def test_pbs_names_the_gpus_of_each_chunk(vnodes: str | None, granted: dict[str, int] | None) -> None:
    shown = json.dumps({"Jobs": {"7.server": {"exec_vnode": vnodes} if vnodes else {}}})
    assert pbs.read_granted_gpus(shown) == granted
