"""What `doctor` makes of what ranks have seen: clocks, interpreters, masks."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_rasda.doctor.findings import Finding, Rating, backend_findings, rank_findings
from parsl_rasda.study.parsl_site import ParslSiteSpec


def rank(number: int, **fields: Any) -> dict[str, Any]:
    seen = {"job": "doctor-2", "node": f"n{number // 2}", "python": "3.11", "forked": True, "clock": 100.0}
    return {
        **seen,
        "mask": {"CUDA_VISIBLE_DEVICES": "0,1"},
        **{"device": "A100", "torch": "2.13", "cuda": "13", "nccl": "2.28"},
        **fields,
    }


SITE = ParslSiteSpec.model_validate(
    {"name": "s", "provider": {"type": "SlurmProvider"}, "nodes": 2, "gpus_per_node": 2}
)


def findings(*ranks: dict[str, Any]) -> dict[str, Finding]:
    return {finding.what: finding for finding in rank_findings(ranks, SITE, "/work")}


def test_ranks_that_are_alike_are_fit() -> None:
    found = findings(*map(rank, range(4)))
    assert {f.verdict for f in found.values()} == {Rating.GOOD}
    assert found["masks"].found == "CUDA_VISIBLE_DEVICES is right on 4 ranks"


def test_a_node_whose_clock_is_late_is_named() -> None:
    found = findings(rank(0), rank(1), rank(2, clock=95.0), rank(3, clock=95.0))
    assert found["clocks of the nodes"].found == "5.0 s apart"
    assert found["clocks of the nodes"].verdict is Rating.DOUBTFUL


def test_clocks_of_jobs_at_different_times_are_not_compared() -> None:
    found = findings(rank(0, job="doctor-1"), rank(1, job="doctor-1"), *map(rank_later, range(4)))
    assert found["clocks of the nodes"].found == "0.0 s apart"


def rank_later(number: int) -> dict[str, Any]:
    return rank(number, clock=900.0)


def test_a_wrapper_that_sets_the_mask_anew_is_found() -> None:
    found = findings(rank(0), rank(1), rank(2), rank(3, mask={"CUDA_VISIBLE_DEVICES": "0"}))
    assert found["masks"].verdict is Rating.BAD
    assert found["masks"].found == "n1 has CUDA_VISIBLE_DEVICES='0' for 2 ranks"


def test_nodes_with_different_pythons_are_unfit() -> None:
    found = findings(rank(0), rank(1), rank(2, python="3.9"), rank(3))
    assert found["python of the ranks"].verdict is Rating.BAD


@pytest.mark.parametrize(("has_it", "verdict"), [(True, Rating.GOOD), (False, Rating.BAD)])
def test_a_torch_that_cannot_add_gradients_of_several_gpus_is_found_before_they_are_tried(
    has_it, verdict
) -> None:
    seen = {"torch": "2.11.0", "backend": "nccl", "has_backend": has_it}
    (finding,) = backend_findings([seen])
    assert (finding.what, finding.verdict) == ("collectives", verdict)
    assert has_it or "built without nccl" in finding.found


def test_slots_that_are_only_logical_need_none() -> None:
    assert not [*backend_findings([])]
    assert not [*backend_findings([{"forked": False}])]
