"""The comparison of `benchmarks/quality.py`: its studies are good ones, and its figures add up."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.study import load_study

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
try:
    from emulated_search import subjects_of
    from quality import parts_of, run_some, take_over
    from quality_parts import ARMS, STUDIES, WORKFLOWS, Part, data_study, declared_arm, part_study
    from quality_table import as_markdown, spread, tabulated
finally:
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_of_a_shipped_study_is_a_good_study_of_the_same_configurations(study, tmp_path) -> None:
    home = tmp_path / study
    shutil.copytree(WORKFLOWS / study, home)
    shipped = yaml.safe_load((home / "study.yaml").read_text())
    data = data_study(shipped)
    (home / "data.yaml").write_text(json.dumps(data))
    assert load_study(home / "data.yaml", environment={}).tune_stages == {}
    spaces = set()
    (shipped_search,) = load_study(home / "study.yaml", environment={}).tune_stages.values()
    asha = {"epochs": 50, "best": subjects_of(shipped_search.tune, 2)[0].config}
    for arm in ARMS:
        results = {name: {"of": name} for name in data["stages"]}
        written = part_study(shipped, Part(study, 3, arm), results, asha=asha)
        (home / f"{arm}.yaml").write_text(json.dumps(written))
        spec = load_study(home / f"{arm}.yaml", environment={})
        (search,) = spec.tune_stages.values()
        assert (spec.seed, len(spec.stages)) == (3, 2)
        if arm == declared_arm(study):
            assert search.tune.scheduler == shipped_search.tune.scheduler
        if arm == "priors":
            priors = {
                n: p["prior"]
                for n, p in search.tune.search_space.items()
                if isinstance(p, Mapping) and "prior" in p
            }
            assert priors["lr"] == asha["best"]["lr"]
            assert priors.items() <= asha["best"].items()
        else:
            spaces.add(json.dumps(search.tune.search_space, sort_keys=True, default=str))
        if arm == "random":
            assert search.tune.scheduler.milestones == (search.tune.scheduler.max_t,)
            assert search.tune.num_samples == round(50 / search.tune.scheduler.max_t)
    assert len(spaces) == 1


def test_the_parts_are_in_an_order_that_lets_each_run_and_those_that_are_there_are_not_run(tmp_path) -> None:
    parts = list(parts_of(["cv_resnet", "am_meltpool"], [0, 1], ["random", "asha"]))
    assert [p.arm for p in parts] == ["asha", "random"] * 4
    assert [p.seed for p in parts] == [0] * 4 + [1] * 4
    assert len({p.name for p in parts}) == len(parts)
    (tmp_path / "parts").mkdir()
    for part in parts:
        (tmp_path / "parts" / f"{part.name}.json").write_text("{}")
    run_some(parts, tmp_path, None, None)
    assert [f.name for f in tmp_path.iterdir()] == ["parts"]


def test_parts_of_another_machine_are_taken_over_and_not_run_again(tmp_path) -> None:
    parts = [{"study": "cv_resnet", "seed": seed, "arm": "asha", "validation": 0.5} for seed in range(2)]
    (tmp_path / "quality.json").write_text(json.dumps({"parts": parts}))
    take_over(tmp_path / "quality.json", tmp_path)
    run_some(list(parts_of(["cv_resnet"], [0, 1], ["asha"])), tmp_path, None, None)
    found = [json.loads(f.read_text()) for f in sorted((tmp_path / "parts").iterdir())]
    assert found == parts


def part(arm: str, seed: int, value: float) -> dict[str, object]:
    keys = ("validation", "test", "epochs", "steps", "gpu_s", "makespan_16_s", "gpu_hours_16")
    return {"study": "s", "seed": seed, "arm": arm, **dict.fromkeys(keys, value)}


def test_ratios_are_those_to_asha_with_the_same_seed() -> None:
    parts = [part("asha", seed, 10.0**seed) for seed in range(3)]
    parts += [part("measured", seed, 2 * 10.0**seed) for seed in range(1, 4)]
    row = tabulated(parts)["s"]["measured"]
    assert row["validation_to_asha"] == {"median": 2.0, "low": 2.0, "high": 2.0, "seeds": 2}
    assert row["validation"]["seeds"] == 3
    assert tabulated(parts)["s"]["asha"]["steps_to_asha"]["median"] == 1.0


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=10))
def test_an_interval_holds_the_median_and_is_the_same_each_time(values) -> None:
    found = spread(values)
    assert found == spread(values)
    assert min(values) <= found["low"] <= found["median"] <= found["high"] <= max(values)


def test_the_table_has_asha_itself_and_the_others_relative_to_it() -> None:
    parts = [part("asha", seed, 10.0) for seed in range(2)] + [part("paper", 0, 15.0)]
    _, _, asha, paper = as_markdown(tabulated(parts)).splitlines()
    assert asha == "| s | asha | 2 | 10 | 10 | 10 | 10 |"
    assert paper == "| s | paper | 1 | x 1.50 | x 1.50 | x 1.50 | x 1.50 |"


def test_nothing_has_no_median() -> None:
    assert spread([]) is None
