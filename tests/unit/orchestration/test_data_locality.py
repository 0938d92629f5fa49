"""On which sites a search runs: on those that have its inputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.orchestration.data_locality import (
    Bound,
    foreseen,
    left_out,
    paths_in,
    results,
    site_problems,
    usable,
)
from parsl_rasda.study import GlobusSiteSpec, ParslSiteSpec, SiteSpec, StudySpec, TuneStage
from parsl_rasda.types import SiteName

NAMES = (SiteName("alps"), SiteName("fjord"), SiteName("cluster"), SiteName("partition"))


def site(name: str) -> SiteSpec:
    common = {"name": name, "accelerator": "none", "gpus_per_node": 2}
    if name in {"cluster", "partition"}:
        return ParslSiteSpec.model_validate({**common, "provider": {"type": "LocalProvider"}})
    endpoint = {"endpoint_id": "00000000-0000-4000-8000-000000000000", "work_dir": "/scratch"}
    return GlobusSiteSpec.model_validate({**common, **endpoint})


SITES = tuple(map(site, NAMES))
TUNE = {
    "metric": "loss",
    "num_samples": 2,
    "scheduler": {"max_t": 2},
    "search_space": {"lr": {"float": [0.1, 1.0]}},
    "training": {"python": "module:function"},
}


def study(tune: dict[str, Any], **stages: dict[str, Any]) -> StudySpec:
    commands = {name: {"command": ["true"], **stage} for name, stage in stages.items()}
    return StudySpec.model_validate({"name": "s", "stages": {**commands, "tune": {"tune": TUNE, **tune}}})


def search(**tune: Any) -> TuneStage:
    stages = {name: {} for name in tune.get("needs", {}).values()}
    return study(tune, **stages).tune_stages["tune"]


def names(sites: tuple[SiteSpec, ...]) -> list[str]:
    return [s.name for s in sites]


@pytest.mark.parametrize(
    ("value", "ran_on", "where"),
    [
        ("/scratch/data", "fjord", ["fjord"]),
        (["/scratch/0", "/scratch/1"], "fjord", ["fjord"]),
        ({"shards": {"train": "/scratch/0"}, "samples": 3}, "fjord", ["fjord"]),
        ("file:///scratch/data", "alps", ["alps"]),
        ("/run/stages/data", "cluster", ["cluster", "partition"]),
        ("s3://bucket/data", "fjord", list(NAMES)),
        ("data/relative", "fjord", list(NAMES)),
        (0.25, "fjord", list(NAMES)),
        (None, "fjord", list(NAMES)),
        ("/scratch/data", None, list(NAMES)),
    ],
)
def test_a_path_is_on_the_disk_of_the_site_that_made_it_and_anything_else_everywhere(
    value: object, ran_on: str | None, where: list[str]
) -> None:
    stage = search(needs={"data": "prepare"})
    made = {"prepare": (value, SiteName(ran_on) if ran_on else None)}
    assert names(usable(stage, SITES, results(stage, made, SITES))) == where


def test_the_sites_that_a_search_leaves_out_are_told_with_the_input_they_lack() -> None:
    whole = study(
        {"needs": {"data": "prepare"}, "with": {"labels": {"alps": "/a", "fjord": "/f", "lumi": "/l"}}},
        prepare={"site": "fjord"},
    )
    sites, (sentence,) = foreseen(whole, "tune", SITES)
    assert names(sites) == ["fjord"]
    assert sentence == (
        "Search tune runs no trial on alps, cluster, partition: `labels` is given for alps, fjord only; "
        "`data`, if stage prepare returns a path, is on the disk of fjord."
    )


def test_what_is_made_on_each_site_or_after_a_search_leaves_nobody_out_beforehand() -> None:
    whole = study({"needs": {"data": "prepare"}}, prepare={"site": "each"})
    assert foreseen(whole, "tune", SITES) == (SITES, ())
    alone = study({"needs": {"data": "prepare"}}, prepare={})
    assert names(foreseen(alone, "tune", SITES)[0]) == ["alps"], "the first site, where stages run"
    assert foreseen(alone, "tune", SITES[2:]) == (SITES[2:], ())


def test_results_that_may_exclude_each_other_are_no_reason_to_refuse_before_they_are_known() -> None:
    whole = study(
        {"needs": {"data": "prepare", "means": "measure"}},
        prepare={"site": "fjord"},
        measure={"site": "alps"},
    )
    sites, (sentence,) = foreseen(whole, "tune", SITES)
    assert sites == SITES
    assert sentence.startswith("Search tune may find no site that has its inputs: `data`, if stage prepare")
    assert not list(site_problems(whole, NAMES))


@pytest.mark.parametrize(
    ("tune", "place", "found"),
    [
        (
            {"with": {"data": {"alps": "/a"}, "labels": {"fjord": "/f"}}},
            "with.labels",
            "fjord, but `data` is given for alps only",
        ),
        (
            {"site": "fjord", "with": {"data": {"alps": "/a"}}},
            "with.data",
            "alps, but it runs on fjord only",
        ),
    ],
)
def test_inputs_that_no_site_has_together_are_refused(tune: dict[str, Any], place: str, found: str) -> None:
    (problem,) = site_problems(study(tune), NAMES)
    assert (".".join(map(str, problem.loc)), problem.found) == (f"stages.tune.{place}", found)


@pytest.mark.parametrize(
    ("keys", "is_refused"),
    [
        (["alps", "fiord"], True),
        (["alp", "fjord"], True),
        (["alps", "fjord"], False),
        (["alps", "lumi"], False),
        (["alps", "partition2"], False),
        (["x"], False),
    ],
)
def test_a_misspelt_site_is_caught_and_one_that_this_run_does_not_have_is_not(
    keys: list[str], is_refused: bool
) -> None:
    problems = list(site_problems(study({"with": {"data": dict.fromkeys(keys, "/d")}}), NAMES))
    assert bool(problems) == is_refused
    assert all("meant to be" in p.allowed for p in problems)


@given(st.lists(st.frozensets(st.sampled_from(NAMES), min_size=1), max_size=4), st.data())
def test_a_search_uses_exactly_the_sites_that_have_every_input_and_tells_of_all_others(
    given_for: list[frozenset[SiteName]], data: st.DataObject
) -> None:
    bounds = [Bound(("with", f"x{i}"), sites, f"x{i} is lacking") for i, sites in enumerate(given_for)]
    only = data.draw(st.sampled_from([None, *NAMES]))
    stage = search(**({"site": only} if only else {}))
    found = names(usable(stage, SITES, bounds))
    assert found == [n for n in NAMES if only in {None, n} and all(n in sites for sites in given_for)]
    told = " ".join(left_out("tune", stage, SITES, bounds))
    for name in NAMES:
        assert (name in told) == (only in {None, name} and name not in found)
    lacking = {i for i, sites in enumerate(given_for) if any(n in told and n not in sites for n in NAMES)}
    assert {i for i in range(len(given_for)) if f"x{i}" in told} == lacking


plain = st.none() | st.integers() | st.sampled_from(["a", "b/c", "s3://b/d"])
paths = st.sampled_from(["/a", "/b/c"])
values = st.recursive(
    plain | paths, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=3)
)


@given(values)
def test_every_absolute_path_in_a_value_is_found_and_nothing_else(value: object) -> None:
    def leaves(part: object) -> list[object]:
        if isinstance(part, dict):
            part = list(part.values())
        return [leaf for p in part for leaf in leaves(p)] if isinstance(part, list) else [part]

    assert list(paths_in(value)) == [leaf for leaf in leaves(value) if leaf in {"/a", "/b/c"}]
