"""What an order says of the inputs that a site must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parsl_rasda.orchestration.events import StartJob
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study import ParslSiteSpec, StudySpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import JobId, NodeName, NodeSlots, PilotId, Placement, SiteName, TrialId
from parsl_rasda.workflow.search_run import Search

SITES = (SiteName("alps"), SiteName("fjord"))
GIVEN: dict[str, Any] = {
    "shards": ["/made/0", "/made/1"],
    "layout": {"group": "/g0/u", "alps": 1},
    "labels": {"alps": "/scratch/labels", "fjord": "/work/labels"},
    "scale": {"alps": 0.5, "fjord": 2.0},
    "everywhere": "/opt/data",
}


def order_on(site: SiteName, folder: Path) -> JobSpec:
    tune = {
        "metric": "loss",
        "num_samples": 2,
        "scheduler": {"max_t": 2},
        "search_space": {"lr": {"float": [0.1, 1.0]}},
        "training": {"python": "module:function"},
    }
    before = {"command": ["true"]}
    stages = {
        "prepare": before,
        "plan": before,
        "tune": {
            "needs": {"shards": "prepare", "layout": "plan"},
            "with": {k: GIVEN[k] for k in ("labels", "scale", "everywhere")},
            "tune": tune,
        },
    }
    study = StudySpec.model_validate({"name": "s", "stages": stages})
    common = {"provider": {"type": "LocalProvider"}, "accelerator": "none", "gpus_per_node": 1}
    sites = {name: ParslSiteSpec.model_validate({"name": name, **common}) for name in SITES}
    run = RunDirectory(folder)
    runner = FakeBackend(lambda order, epoch: {})
    search = Search(study, "tune", study.tune_stages["tune"].tune, sites, runner, run, run, GIVEN)
    slots = Placement(site, PilotId("p"), (NodeSlots(NodeName("n"), (0,)),))
    start = StartJob(JobId(TrialId("0000"), 1), {}, slots, 0, 2, ((0, 1),), None)
    return search.job_specs().build(start, interactive=False, deadline=None)


def test_a_site_must_have_the_paths_that_are_its_own_and_those_that_stages_made(tmp_path: Path) -> None:
    """Not what is the same everywhere, and no text inside a mapping: it may name a group in a file."""
    order = order_on(SITES[1], tmp_path)
    assert order.inputs["labels"] == "/work/labels"
    made = (("shards", "/made/0"), ("shards", "/made/1"))
    assert order.paths == (*made, ("labels", "/work/labels"))
    assert JobSpec.from_json(order.to_json()) == order
