"""Where stages run, and what those that need them get on each site."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.orchestration.admission import check_sites
from parsl_rasda.study import CommandStage, GlobusSiteSpec, StudySpec
from parsl_rasda.types import SiteName
from parsl_rasda.workflow.dag import (
    StageResult,
    calls_of,
    of_site,
    result_of,
    sites_of,
    sites_of_search,
)

SITES = (SiteName("alps"), SiteName("fjord"))


def stage(**fields: Any) -> CommandStage:
    return CommandStage.model_validate({"command": ["true"], **fields})


def ran(spec: CommandStage, done: dict[str, StageResult], results: list[Any]) -> Any:
    at = sites_of(spec, done, SITES)
    calls = calls_of(spec, done, (), at=at, sites=SITES)
    return calls, result_of(spec, calls, results, at).value


def test_a_stage_on_each_site_runs_there_with_what_the_one_before_made_there() -> None:
    simulate = stage(site="each", for_each={"seed": [0, 1]}, **{"with": {"grid": {"alps": 8, "fjord": 9}}})
    calls, fields = ran(simulate, {}, ["a0", "a1", "f0", "f1"])
    assert [c.name for c in calls] == ["alps/0000", "alps/0001", "fjord/0000", "fjord/0001"]
    assert [c.arguments["grid"] for c in calls] == [8, 8, 9, 9]
    assert fields == {"alps": ["a0", "a1"], "fjord": ["f0", "f1"]}
    prepare = stage(site="each", needs={"fields": "simulate"})
    calls, data = ran(prepare, {"simulate": StageResult(fields, "key")}, ["a", "f"])
    assert [(c.site, c.arguments["fields"]) for c in calls] == [
        ("alps", ["a0", "a1"]),
        ("fjord", ["f0", "f1"]),
    ]
    assert data == {"alps": "a", "fjord": "f"}


def test_a_stage_that_fans_out_over_what_each_site_made_takes_its_own() -> None:
    done = {"simulate": StageResult({"alps": ["a0"], "fjord": ["f0", "f1"]}, "key")}
    calls, value = ran(stage(site="each", for_each={"field": "simulate"}), done, [1, 2, 3])
    assert [c.arguments["field"] for c in calls] == ["a0", "f0", "f1"]
    assert value == {"alps": [1], "fjord": [2, 3]}


@pytest.mark.parametrize(
    ("checkpoint", "where"),
    [("/disk/trials/0003/epoch-000008", "fjord"), ("s3://bucket/run/epoch-8", "alps")],
)
def test_a_stage_goes_where_the_checkpoint_lies_that_it_needs(checkpoint: str, where: str) -> None:
    best = StageResult({"trial": "0003", "checkpoint": checkpoint, "site": "fjord"}, "key")
    data = StageResult({"alps": "a", "fjord": "f"}, "key")
    evaluate = stage(needs={"best": "tune", "data": "prepare"})
    (call,), _ = ran(evaluate, {"tune": best, "prepare": data}, [None])
    assert (call.site, call.name) == (where, "0000")
    assert call.arguments["data"] == where[0]


SEARCH = {
    "metric": "loss",
    "num_samples": 2,
    "scheduler": {"max_t": 2},
    "search_space": {"lr": {"float": [0.1, 1.0]}},
    "training": {"python": "module:function"},
}


def site(name: str) -> GlobusSiteSpec:
    endpoint = "00000000-0000-4000-8000-000000000000"
    return GlobusSiteSpec.model_validate({"name": name, "endpoint_id": endpoint, "work_dir": "/w"})


def best(checkpoint: str) -> dict[str, Any]:
    return {"trial": "0", "checkpoint": checkpoint, "config": {"file": "/no/input"}, "site": "fjord"}


@pytest.mark.parametrize(
    ("first", "result", "where"),
    [
        ({"command": ["true"], "site": "fjord"}, "/disk/data", ["fjord"]),
        ({"command": ["true"]}, "/disk/data", ["alps"]),
        ({"command": ["true"], "site": "fjord"}, 0.5, ["alps", "fjord"]),
        ({"command": ["true"], "site": "each"}, {"alps": "/a", "fjord": "/f"}, ["alps", "fjord"]),
        ({"command": ["true"], "site": "fjord"}, {"alps": "/a", "fjord": "/f"}, ["alps", "fjord"]),
        ({"tune": SEARCH}, best("/disk/trials/epoch-2"), ["fjord"]),
        ({"tune": SEARCH}, best("s3://bucket/epoch-2"), ["alps", "fjord"]),
    ],
)
def test_a_search_runs_where_what_it_needs_lies(first: dict[str, Any], result: Any, where: list[str]) -> None:
    stages = {"first": first, "last": {"needs": {"x": "first"}, "tune": SEARCH}}
    study = StudySpec.model_validate({"name": "s", "stages": stages})
    done = {"first": StageResult(result, "key")}
    found, sentences = sites_of_search(study, "last", done, [site(name) for name in SITES])
    assert list(found) == where
    assert len(sentences) == (len(where) < 2)


def test_a_search_whose_inputs_turn_out_to_be_on_different_disks_is_refused() -> None:
    stages = {
        "one": {"command": ["true"], "site": "alps"},
        "two": {"command": ["true"], "site": "fjord"},
        "tune": {"needs": {"a": "one", "b": "two"}, "tune": SEARCH},
    }
    study = StudySpec.model_validate({"name": "s", "stages": stages})
    done = {"one": StageResult("/a", "1"), "two": StageResult("/b", "2")}
    words = r"stages\.tune\.needs\.b: found 'fjord, but `a`, which stage one made, is on the disk of alps'"
    with pytest.raises(InvalidSettingError, match=words):
        sites_of_search(study, "tune", done, [site(name) for name in SITES])


def test_only_a_mapping_with_every_site_differs_by_site() -> None:
    assert of_site({"alps": 1}, SITES[0], SITES) == {"alps": 1}
    assert of_site({"alps": 1, "fjord": 2, "more": 3}, SITES[1], SITES) == 2


def test_a_best_trial_is_whole_on_a_site_whose_name_is_one_of_its_keys() -> None:
    """`init` writes site.yaml, so that its site is called ``site``."""
    best = {"trial": "0003", "config": {}, "checkpoint": "/disk/epoch-8", "site": "site"}
    assert of_site(best, SiteName("site"), [SiteName("site")]) == best


def test_a_stage_on_a_site_that_the_run_does_not_have_is_refused() -> None:
    study = StudySpec.model_validate(
        {"name": "s", "stages": {"prepare": {"command": ["true"], "site": "lumi"}}}
    )
    with pytest.raises(InvalidSettingError, match=r"stages\.prepare\.site.*alps, fjord"):
        check_sites(study, SITES)


@pytest.mark.parametrize(
    ("value", "is_refused"),
    [
        ({"alps": 1}, True),
        ({"alps": 1, "lumi": 2}, True),
        ({"alps": 1, "fjord": 2}, False),
        ({"x": 1}, False),
    ],
)
def test_an_argument_that_is_given_for_some_of_the_sites_only_is_refused(
    value: dict[str, int], is_refused: bool
) -> None:
    study = StudySpec.model_validate(
        {"name": "s", "stages": {"prepare": {"command": ["true"], "with": {"data": value}}}}
    )
    check_sites(study, SITES[:1])
    if is_refused:
        with pytest.raises(InvalidSettingError, match=r"stages\.prepare\.with\.data.*each site: alps, fjord"):
            check_sites(study, SITES)
    else:
        check_sites(study, SITES)
