"""What `doctor` makes of what ranks have seen: clocks, interpreters, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.doctor.examination import Doctor, Finding, Verdict
from parsl_rasda.study.sites import ParslSiteSpec


def rank(number: int, **fields: Any) -> dict[str, Any]:
    seen = {"job": "doctor-2", "node": f"n{number // 2}", "python": "3.11", "forked": True, "clock": 100.0}
    return {
        **seen,
        "mask": {"CUDA_VISIBLE_DEVICES": "0,1"},
        **{"device": "A100", "torch": "2.13", "cuda": "13", "nccl": "2.28"},
        **fields,
    }


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    declared = {"name": "s", "provider": {"type": "SlurmProvider"}, "nodes": 2, "gpus_per_node": 2}
    return Doctor(ParslSiteSpec.model_validate({**declared, "work_dir": str(tmp_path)}))


def findings(doctor: Doctor, ranks: list[dict[str, Any]]) -> dict[str, Finding]:
    return {finding.what: finding for finding in doctor._seen(ranks)}


def test_ranks_that_are_alike_are_fit(doctor: Doctor) -> None:
    found = findings(doctor, [rank(i) for i in range(4)])
    assert {f.verdict for f in found.values()} == {Verdict.GOOD}
    assert found["masks"].found == "CUDA_VISIBLE_DEVICES is right on 4 ranks"


def test_a_node_whose_clock_is_late_is_named(doctor: Doctor) -> None:
    found = findings(doctor, [rank(0), rank(1), rank(2, clock=95.0), rank(3, clock=95.0)])
    assert found["clocks of the nodes"].found == "5.0 s apart"
    assert found["clocks of the nodes"].verdict is Verdict.DOUBTFUL


def test_clocks_of_jobs_at_different_times_are_not_compared(doctor: Doctor) -> None:
    found = findings(doctor, [rank(0, job="doctor-1"), rank(1, job="doctor-1"), *map(rank_later, range(4))])
    assert found["clocks of the nodes"].found == "0.0 s apart"


def rank_later(number: int) -> dict[str, Any]:
    return rank(number, clock=900.0)


def test_a_wrapper_that_sets_the_mask_anew_is_found(doctor: Doctor) -> None:
    found = findings(doctor, [rank(0), rank(1), rank(2), rank(3, mask={"CUDA_VISIBLE_DEVICES": "0"})])
    assert found["masks"].verdict is Verdict.BAD
    assert found["masks"].found == "n1 has CUDA_VISIBLE_DEVICES='0' for 2 ranks"


def test_nodes_with_different_pythons_are_unfit(doctor: Doctor) -> None:
    found = findings(doctor, [rank(0), rank(1), rank(2, python="3.9"), rank(3)])
    assert found["python of the ranks"].verdict is Verdict.BAD
