"""The pilot that `doctor` asks for: small, and where the site file says so in another queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.doctor.examination import Doctor
from parsl_rasda.study.document import AsWritten
from parsl_rasda.study.parsl_site import ParslSiteSpec

PROVIDER = {"type": "PBSProProvider", "queue": "prod", "nodes_per_block": 10, "walltime": "03:00:00"}


def pilot_of(folder: Path, **fields: Any) -> dict[str, Any]:
    declared = {
        "name": "polaris",
        "provider": PROVIDER,
        "gpus_per_node": 4,
        "work_dir": str(folder),
        **fields,
    }
    site = Doctor(ParslSiteSpec.model_validate(declared)).site
    assert isinstance(site, ParslSiteSpec)
    assert site.pilots == 1
    return dict(site.provider.options) | {"nodes": site.nodes_per_pilot}


def test_it_has_two_nodes_and_a_short_walltime(tmp_path: Path) -> None:
    assert pilot_of(tmp_path, pilots=3) == {
        "queue": "prod",
        "nodes_per_block": 2,
        "walltime": "00:20:00",
        "nodes": 2,
    }


def test_the_site_file_sends_it_to_a_queue_for_tests(tmp_path: Path) -> None:
    assert pilot_of(tmp_path, doctor={"queue": "debug", "walltime": "00:30:00"}) == {
        "queue": "debug",
        "nodes_per_block": 2,
        "walltime": "00:30:00",
        "nodes": 2,
    }


@pytest.mark.parametrize(
    ("accelerator", "own", "found"),
    [
        ("cuda", {}, "INFO"),
        ("rocm", {}, "INFO"),
        ("cuda", {"NCCL_DEBUG": "TRACE"}, "TRACE"),
        ("xpu", {}, None),
        ("cpu", {}, None),
    ],
)
def test_ranks_on_gpus_are_asked_what_they_go_over(tmp_path: Path, accelerator, own, found) -> None:
    declared = {"name": "s", "provider": PROVIDER, "accelerator": accelerator, "environment": own}
    site = ParslSiteSpec.model_validate({**declared, "work_dir": str(tmp_path)})
    written = {("work_dir",): AsWritten("${WORK}", is_plain=True)}
    examined = Doctor(site.as_written(written)).site
    assert examined.environment.get("NCCL_DEBUG") == found
    assert examined.written == written, "variables stay out of what is written down"
