"""What `doctor` says of a container."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_rasda.doctor.container import container_findings, where_ranks_run
from parsl_rasda.doctor.findings import Rating, environment_findings
from parsl_rasda.study.parsl_site import ParslSiteSpec

SITE = ParslSiteSpec.model_validate(
    {
        "provider": {"type": "SlurmProvider"},
        "gpus_per_node": 4,
        "container": {"runtime": "apptainer", "image": "a.sif"},
    }
)
HERE: dict[str, Any] = {"python": "3.11", "versions": {"parsl_rasda": "1", "torch": "2.9"}, "gpus": 0}
THERE: dict[str, Any] = {"python": "3.11", "versions": {"parsl_rasda": "1", "torch": None}, "gpus": 4}
INSIDE: dict[str, Any] = {**HERE, "python": "3.12", "gpus": 4, "executable": "/opt/python"}


@pytest.mark.parametrize(
    ("inside", "found", "verdict"),
    [
        ({}, "/opt/python, Python 3.12", Rating.GOOD),
        (
            {"versions": {"parsl_rasda": "1", "torch": "2.8"}},
            "/opt/python, Python 3.12, torch 2.9 here",
            Rating.DOUBTFUL,
        ),
        ({"error": "exit 255: no image"}, "exit 255: no image", Rating.BAD),
    ],
)
def test_a_container_is_told_by_what_it_has(inside: dict[str, Any], found: str, verdict: Rating) -> None:
    (line,) = container_findings(SITE, {**THERE, "inside": INSIDE | inside}, HERE)
    assert (line.what, line.found, line.verdict) == ("container (apptainer)", found, verdict)


def test_packages_and_gpus_are_those_of_the_ranks_and_python_is_that_of_the_workers() -> None:
    there = where_ranks_run({**THERE, "inside": {**INSIDE, "gpus": 2}})
    lines = {line.what: line for line in environment_findings(SITE, there, HERE)}
    assert lines["packages"].verdict is Rating.GOOD
    assert lines["python"].verdict is Rating.GOOD
    assert lines["GPUs per node"].found == "2 found, 4 declared"


def test_without_a_container_nothing_is_said_of_one() -> None:
    site = ParslSiteSpec.model_validate({"provider": {"type": "SlurmProvider"}})
    assert [*container_findings(site, THERE, HERE)] == []
    assert where_ranks_run(THERE) == THERE
