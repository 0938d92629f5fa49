from __future__ import annotations

import io
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from parsl_rasda.cli.forecasts import forecast_view
from parsl_rasda.errors import InvalidSettingError, PlacementImpossibleError
from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.simulation.comparison import WhatIf
from parsl_rasda.simulation.forecast import forecast, forecast_study, virtual_site
from parsl_rasda.simulation.measured import counted_gpus, measured_costs
from parsl_rasda.simulation.outcome import Forecast
from parsl_rasda.simulation.queues import pilot_waits
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import ParslSiteSpec, StudySpec
from parsl_rasda.types import GradientNoise, SiteName

FOUR = {SiteName("here"): VirtualSite(nodes=2, gpus_per_node=2)}


def plan(study: StudySpec, sites=FOUR, **more) -> Forecast:
    stage, spec = next(iter(study.tune_stages.items()))
    return forecast(stage, spec.tune, sites, seed=study.seed, **more)


def policy(found: Forecast, name: str):
    return next(p for p in found.policies if p.name == name)


def test_three_policies_train_the_same_trials_side_by_side(rehearsals) -> None:
    found = plan(rehearsals.study_of(num_samples=4, scheduler={"variant": "synchronous"}))
    names = ["RASDA elastic", "RASDA strict", "ASHA", "RASDA stopping", "Hyperband"]
    assert [p.name for p in found.policies] == names
    assert [p.is_declared for p in found.policies] == [True, False, False, False, False]
    assert [(r.epochs, r.replicas) for r in found.rungs] == [(1, 1), (2, 2), (4, 4), (8, 4)]
    assert found.rungs[0].trials == 4
    assert [r.trials for r in found.rungs] == sorted((r.trials for r in found.rungs), reverse=True)
    assert policy(found, "ASHA").speedup == 1.0
    assert policy(found, "RASDA elastic").speedup > 1.3
    assert policy(found, "ASHA").restarts == 0


def test_books_of_a_forecast_add_up(rehearsals) -> None:
    found = plan(rehearsals.study_of())
    for p in found.policies:
        assert p.gpu_hours == pytest.approx(4 * p.makespan_s / 3600)
        assert p.node_hours == pytest.approx(p.gpu_hours / 2)
        assert 0 < p.gpu_busy_fraction <= 1
        assert p.speedup == pytest.approx(policy(found, "ASHA").makespan_s / p.makespan_s)


def test_a_study_that_asks_for_asha_learns_what_rasda_would_gain(rehearsals) -> None:
    found = plan(rehearsals.study_of(num_samples=4, scheduler={"kind": "asha", "variant": "synchronous"}))
    assert policy(found, "ASHA").is_declared
    assert any("`kind: rasda` would be" in sentence for sentence in found.advice)


def test_a_long_queue_and_dear_restarts_are_named_when_rasda_will_not_pay(rehearsals) -> None:
    one = {SiteName("here"): VirtualSite(nodes=1, gpus_per_node=2)}
    dear = {"epoch_s": 10.0, "restart_s": 30.0, "efficiency": 0.9}
    (sentence,) = plan(rehearsals.study_of(num_samples=32, estimates=dear), one).advice
    assert "RASDA elastic will not pay here" in sentence
    assert "No other single setting" in sentence
    assert "32 trials queue for 2 places, 16.0 each" in sentence
    assert "a restart takes 3.0 epochs" in sentence


def test_replicas_that_never_grow_are_named(rehearsals) -> None:
    (sentence,) = plan(rehearsals.study_of(num_samples=4, scheduler={"max_workers": 1})).advice
    assert "trials never grow" in sentence


def test_the_change_that_would_make_it_pay_is_named_with_its_gain(rehearsals) -> None:
    study = rehearsals.study_of(num_samples=4, scheduler={"max_workers": 1, "variant": "synchronous"})
    (sentence,) = plan(study).advice
    changed = rehearsals.study_of(num_samples=4, scheduler={"max_workers": 2, "variant": "synchronous"})
    gain = policy(plan(changed), "RASDA elastic").speedup
    assert gain > 1.05
    assert f"It would with `max_workers: 2`: {gain:.2f} x ASHA, in " in sentence


def test_a_strict_study_learns_when_elastic_would_be_faster(rehearsals) -> None:
    found = plan(rehearsals.study_of(num_samples=16, scheduler={"growth": "strict"}))
    assert policy(found, "RASDA strict").is_declared
    gain = policy(found, "RASDA strict").makespan_s / policy(found, "RASDA elastic").makespan_s
    assert gain > 1.05
    assert any(f"`growth: elastic` would be {gain:.2f} x" in sentence for sentence in found.advice)


def test_a_script_that_never_asks_is_rehearsed_to_its_end(rehearsals) -> None:
    script = {"training": {"command": ["train", "{replicas}", "{until}"]}}
    found = plan(rehearsals.study_of(num_samples=4, scheduler={"variant": "synchronous"}, **script))
    assert [r.trials for r in found.rungs] == [4, 2, 1, 1]


def test_guesses_are_called_guesses(rehearsals) -> None:
    study = rehearsals.study_of()
    tune = study.tune_stages["tune"].tune.model_dump(mode="json", exclude={"estimates"})
    guessed = StudySpec.model_validate({"name": "guessed", "tune": tune})
    assert plan(guessed).guessed == ("an epoch of 60 s", "a restart of 10 s")
    half = StudySpec.model_validate({"name": "half", "tune": tune | {"estimates": {"epoch_s": 2.0}}})
    assert plan(half).guessed == ("a restart of 10 s",)
    assert plan(study).guessed == ()


def test_a_trial_that_can_never_fit_is_an_error_before_anything(rehearsals) -> None:
    small = {SiteName("here"): VirtualSite(nodes=1, gpus_per_node=2)}
    with pytest.raises(PlacementImpossibleError, match="needs 4 GPUs at once"):
        plan(rehearsals.study_of(scheduler={"growth": "strict"}), small)
    found = plan(rehearsals.study_of(), small)
    assert policy(found, "RASDA strict").makespan_s is None
    assert policy(found, "RASDA strict").needed_gpus == 4
    with pytest.raises(PlacementImpossibleError, match="num_workers"):
        plan(rehearsals.study_of(scheduler={"num_workers": 4}), small)


def test_gpus_that_nobody_can_count_are_asked_for() -> None:
    site = ParslSiteSpec.model_validate({"name": "far", "provider": {"type": "SlurmProvider"}})
    with pytest.raises(InvalidSettingError, match=r"site far: gpus_per_node: found 'auto'"):
        virtual_site(site, {})
    assert virtual_site(site, {"far": 4}) == VirtualSite(1, 4, 1, interactive=True)


def test_a_site_of_one_to_three_pilots_is_rehearsed_with_those_that_trials_wait_for() -> None:
    site = {"name": "far", "provider": {"type": "SlurmProvider"}, "gpus_per_node": 4}
    ranged = ParslSiteSpec.model_validate({**site, "pilots": {"min": 1, "max": 3}})
    assert virtual_site(ranged, {}) == VirtualSite(1, 4, 3, interactive=True, later=2)


def test_a_stage_is_planned_on_its_own_site(rehearsals) -> None:
    study = rehearsals.study_of()
    sites = [
        ParslSiteSpec.model_validate({"name": n, "provider": {"type": "LocalProvider"}, "gpus_per_node": g})
        for n, g in (("small", 2), ("large", 8))
    ]
    stage = study.tune_stages["tune"]
    bound = study.model_copy(update={"stages": {"tune": stage.model_copy(update={"site": "small"})}})
    assert [f.gpus for f in forecast_study(study, sites, counted={}, runs={})] == [10]
    assert [f.gpus for f in forecast_study(bound, sites, counted={}, runs={})] == [2]
    with pytest.raises(InvalidSettingError, match="one of the sites given: large"):
        forecast_study(bound, sites[1:], counted={}, runs={})


def test_a_search_among_several_that_can_never_fit_is_named(rehearsals) -> None:
    site = ParslSiteSpec.model_validate({"name": "far", "provider": {"type": "SlurmProvider"}})
    one = rehearsals.study_of().tune_stages["tune"]
    wide = rehearsals.study_of(scheduler={"num_workers": 4}).tune_stages["tune"]
    both = StudySpec.model_validate({"name": "s", "stages": {"one": one, "wide": wide}})
    with pytest.raises(PlacementImpossibleError, match=r"stages\.wide\.tune\.scheduler\.num_workers"):
        forecast_study(both, [site], counted={"far": 2}, runs={})


def test_what_cannot_be_known_is_drawn_by_several_seeds(rehearsals) -> None:
    study = rehearsals.study_of(estimates={"epoch_s": 10.0, "restart_s": 1.0, "spread": 0.4})
    found = plan(study, what_if=WhatIf())
    alone = [
        plan(study.model_copy(update={"seed": study.seed + k}), what_if=WhatIf(seeds=1)) for k in range(5)
    ]
    assert found.seeds == 5
    for p in found.policies:
        each = sorted(policy(one, p.name).makespan_s for one in alone)
        assert p.makespan_s == each[2]
        assert p.ranges["makespan_s"] == (each[0], each[-1])
    assert found.declared.ranges["makespan_s"][0] < found.declared.ranges["makespan_s"][1]


def test_large_studies_are_drawn_less_often_and_compared_with_fewer(rehearsals) -> None:
    found = plan(rehearsals.study_of(num_samples=1001, scheduler={"max_t": 2}), what_if=WhatIf())
    assert found.seeds == 1
    assert [p.name for p in found.policies] == ["RASDA elastic", "RASDA strict", "ASHA"]


def test_pilots_of_several_sizes_are_compared(rehearsals) -> None:
    study = rehearsals.study_of(num_samples=16, scheduler={"growth": "strict"})
    found = plan(study, what_if=WhatIf(seeds=1, nodes=(1, 2, 8)))
    assert [(size.nodes, size.gpus) for size in found.sizes] == [(1, 2), (2, 4), (8, 16)]
    assert found.sizes[0].policies == (), "4 GPUs at once do not fit"
    (two, eight) = ({p.name: p for p in size.policies} for size in found.sizes[1:])
    assert two["RASDA strict"].makespan_s == policy(found, "RASDA strict").makespan_s
    assert eight["RASDA strict"].makespan_s < two["RASDA strict"].makespan_s
    assert plan(study, what_if=WhatIf(seeds=1, nodes=(8,))).gpus == 16, (
        "one size takes the place of the site's"
    )


def test_sizes_of_several_sites_are_refused(rehearsals) -> None:
    both = {**FOUR, SiteName("there"): VirtualSite(nodes=1, gpus_per_node=4)}
    with pytest.raises(InvalidSettingError, match=r"--nodes: found 3; .*one site"):
        plan(rehearsals.study_of(), both, what_if=WhatIf(nodes=(3,)))


def test_a_wait_in_the_queue_delays_a_study_and_holds_nothing(rehearsals) -> None:
    study, here = rehearsals.study_of(), SiteName("here")
    at_once = plan(study).declared
    waits = plan(study, what_if=WhatIf(seeds=1, waits={here: [300.0]})).declared
    assert waits.makespan_s == pytest.approx(at_once.makespan_s + 300)
    assert waits.queue_s == 300
    assert waits.gpu_hours == pytest.approx(at_once.gpu_hours)
    assert waits.speedup == pytest.approx(at_once.speedup), "waiting is not the policy's"
    learnt = plan(study, what_if=WhatIf(seeds=5, waits={here: [60.0, 300.0, 900.0]})).declared
    low, high = learnt.ranges["makespan_s"]
    assert low < high <= 1000 + high - low


def test_waits_of_earlier_pilots_are_read_from_their_run(rehearsals, tmp_path) -> None:
    study = rehearsals.study_of()
    rehearsals.into(tmp_path, study, site=VirtualSite(nodes=1, gpus_per_node=2, pilots=2))
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    assert pilot_waits([history]) == {"virtual": [12.0, 12.0]}


def test_pilots_that_would_do_outlive_the_study_and_are_no_more_than_it_needs(rehearsals) -> None:
    sites = {SiteName("here"): VirtualSite(nodes=2, gpus_per_node=4, pilots=4)}
    study = rehearsals.study_of(num_samples=4, scheduler={"max_workers": 1})
    (found,) = plan(study, sites, what_if=WhatIf(seeds=1, walltimes_s={SiteName("here"): 30.0})).pilots
    makespan_s = plan(study, sites).declared.makespan_s
    assert found.enough == 1, "4 trials of one GPU"
    assert found.walltime_s >= 1.2 * makespan_s
    assert found.walltime_s % 300 == 0
    assert found.in_turn == math.ceil(makespan_s / 30)


@pytest.mark.parametrize("later", [1, 3])
def test_fewer_pilots_would_do_also_where_some_are_asked_for_later(rehearsals, later: int) -> None:
    sites = {SiteName("here"): VirtualSite(nodes=2, gpus_per_node=4, pilots=4, later=later)}
    study = rehearsals.study_of(num_samples=4, scheduler={"max_workers": 1})
    (found,) = plan(study, sites, what_if=WhatIf(seeds=1)).pilots
    assert found.enough == 1, "4 trials of one GPU"


@settings(deadline=None, max_examples=30)
@given(
    trials=st.integers(1, 24),
    gpus=st.sampled_from([1, 2, 4, 8]),
    restart=st.floats(0, 30),
    variant=st.sampled_from(["stopping", "promotion", "synchronous"]),
    seed=st.integers(0, 5),
)
def test_no_forecast_beats_the_work_it_contains(trials, gpus, restart, variant, seed) -> None:
    tune = {
        "metric": "m",
        "num_samples": trials,
        "scheduler": {"max_t": 8, "variant": variant, "max_workers": 8},
        "search_space": {"lr": {"float": [0.1, 1]}},
        "training": {"python": "a:b"},
        "estimates": {"epoch_s": 10.0, "restart_s": restart, "efficiency": 0.8, "spread": 0.0},
    }
    study = StudySpec.model_validate({"name": "s", "seed": seed, "tune": tune})
    found = plan(study, {SiteName("here"): VirtualSite(nodes=1, gpus_per_node=gpus)})
    assert found.rungs[0].trials == trials, "every trial is judged at least once"
    for p in found.policies:
        if p.makespan_s is None:
            assert p.needed_gpus > gpus
            continue
        # No width does an epoch with less GPU time than one GPU does.
        assert p.makespan_s >= p.epochs * 10.0 / gpus - 1e-6
        assert p.makespan_s <= trials * 8 * (10.0 + restart) + restart + 1e-6


# ------------------------------------------------------------------------------- measured in a run


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
def test_a_plan_from_a_finished_run_predicts_that_run(rehearsals, tmp_path, variant) -> None:
    study = rehearsals.study_of(num_samples=12, scheduler={"variant": variant})
    rehearsals.into(tmp_path, study)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    found = plan(study, measured=history)
    assert found.is_measured
    predicted = policy(found, "RASDA elastic")
    assert predicted.makespan_s == pytest.approx(history.usage.makespan_s(), rel=0.03)
    assert [r.trials for r in found.rungs] == [r["reached"] for r in history.summary()["rungs"]]


def test_a_larger_metric_can_be_the_better_one_in_the_measured_run(rehearsals, tmp_path) -> None:
    upward = rehearsals.costs_of(metric=lambda trial, epoch: trial + 0.01 * epoch)
    study = rehearsals.study_of(mode="max")
    rehearsals.into(tmp_path, study, costs=upward)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    found = plan(study, measured=history)
    assert [r.trials for r in found.rungs] == [r["reached"] for r in history.summary()["rungs"]]


def test_costs_of_a_run_are_read_back(rehearsals, tmp_path) -> None:
    given_costs = rehearsals.costs_of()
    study = rehearsals.study_of()
    rehearsals.into(tmp_path, study, costs=given_costs)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    costs = measured_costs(history, seed=0)
    for trial in range(8):
        assert costs.launch_s(trial) == pytest.approx(given_costs.launch_s(trial))
        assert costs.epoch_s(trial, 1) == pytest.approx(given_costs.epoch_s(trial, 1))
        assert costs.metric(trial, 1) == given_costs.metric(trial, 1)
    for name in ("restart_s", "boundary_s", "leave_s", "queue_s"):
        assert getattr(costs, name) == pytest.approx(getattr(given_costs, name)), name
    assert counted_gpus([history]) == {"virtual": 2}


def test_ends_that_a_controller_handled_late_hold_their_slots_in_a_plan(rehearsals, tmp_path) -> None:
    late = rehearsals.costs_of(leave_of=lambda trial, _: (0.1, 0.1 + 4.0 * (trial % 3)))
    study = rehearsals.study_of(num_samples=12, scheduler={"variant": "synchronous"})
    rehearsals.into(tmp_path, study, costs=late)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    measured = measured_costs(history, seed=0)
    found = [measured.leave_of(trial, 1) for trial in range(12)]
    assert all(leave_s == pytest.approx(0.1) for leave_s, _ in found)
    assert max(handled_s for _, handled_s in found) > 1.0, "as far as later events show it"
    predicted = plan(study, measured=history).declared.makespan_s
    assert predicted == pytest.approx(history.usage.makespan_s(), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_who_came_first_to_a_rung_comes_first_in_a_plan(rehearsals, tmp_path, seed) -> None:
    """A mean would not do: of a trial's epochs the first takes longest, and trials differ in that."""
    draw = random.Random(seed)
    first_s = [draw.uniform(5.0, 30.0) for _ in range(12)]
    uneven = rehearsals.costs_of(epoch_of=lambda trial, epoch, _: first_s[trial] if epoch == 1 else None)
    study = rehearsals.study_of(num_samples=12, scheduler={"variant": "stopping"})
    rehearsals.into(tmp_path, study, costs=uneven)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    found = plan(study, measured=history)
    assert found.declared.epochs == history.usage.epochs
    assert [r.trials for r in found.rungs] == [r["reached"] for r in history.summary()["rungs"]]
    assert found.declared.makespan_s == pytest.approx(history.usage.makespan_s(), rel=0.03)


def test_a_trial_beyond_the_run_behaves_as_one_of_it(rehearsals, tmp_path) -> None:
    study = rehearsals.study_of()
    rehearsals.into(tmp_path, study)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    costs = measured_costs(history, seed=0)
    assert costs.metric(99, 1) in {costs.metric(trial, 1) for trial in range(8)}
    assert costs.epoch_s(99, 1) in {costs.epoch_s(trial, 1) for trial in range(8)}
    assert costs.metric(99, 1) == measured_costs(history, seed=0).metric(99, 1)
    known = max(history.machine.trials["0001"].history)
    assert costs.metric(1, known + 50) == costs.metric(1, known)


def test_a_run_without_an_epoch_leaves_the_estimates_in_force(rehearsals, tmp_path) -> None:
    study = rehearsals.study_of()
    rehearsals.into(tmp_path, study, torn_after=0.0)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    assert not plan(study, measured=history).is_measured
    assert math.isnan(measured_costs(replace(history, machine=history.machine), seed=0).metric(0, 1))


def test_with_a_constant_batch_only_gpus_grow_and_asha_has_the_same_replicas(rehearsals) -> None:
    method = {"variant": "synchronous", "batch": "constant"}
    for kind in ("rasda", "asha"):
        found = plan(rehearsals.study_of(num_samples=4, scheduler={**method, "kind": kind}))
        assert {r.replicas for r in found.rungs} == {4}
        assert [r.workers for r in found.rungs] == ([1, 2, 4, 4] if kind == "rasda" else [1, 1, 1, 1])
        assert policy(found, "RASDA elastic").speedup > 1.3
        assert policy(found, "RASDA strict").speedup is not None
        assert len({p.epochs for p in found.policies[:3]}) == 1


def test_a_batch_that_stops_growing_is_foretold_where_the_samples_are_known(rehearsals) -> None:
    sentence = (
        "at 4 replicas an epoch of 448 samples has 4 steps with batch_size 32; the batch stays at 1 x 32: "
        "GPUs still grow"
    )
    known = plan(rehearsals.study_of(estimates={"samples": 448}))
    assert sentence in known.advice
    assert [r.workers for r in known.rungs] == [1, 2, 4, 4]
    for spec in ({}, {"estimates": {"samples": 448}, "scheduler": {"min_steps_per_epoch": None}}):
        assert not any("the batch stays" in s for s in plan(rehearsals.study_of(**spec)).advice)


@pytest.mark.parametrize(
    ("estimates", "batches"),
    [
        ({}, [(1,), (1,), (1,), (1,)]),
        ({"noise_scale": 100.0}, [(1,), (2,), (2,), (2,)]),
        ({"noise_scale": 1e6}, [(1,), (2,), (4,), (4,)]),
        ({"noise_scale": 1e6, "samples": 3200}, [(1,), (2,), (2,), (2,)]),
    ],
)
def test_a_measured_batch_is_rehearsed_as_far_as_its_noise_is_known(rehearsals, estimates, batches) -> None:
    method = {"variant": "synchronous", "batch": "measured"}
    found = plan(rehearsals.study_of(num_samples=8, scheduler=method, estimates=estimates))
    assert [r.batches for r in found.rungs] == batches
    assert {r.replicas for r in found.rungs} == {4}
    assert [r.workers for r in found.rungs] == [1, 2, 4, 4]
    assert policy(found, "RASDA elastic").speedup > 1.0


def test_a_plan_from_a_run_rehearses_the_noise_that_it_measured(rehearsals, tmp_path) -> None:
    method = {"variant": "synchronous", "batch": "measured"}
    study = rehearsals.study_of(scheduler=method)
    rehearsals.into(tmp_path, study, costs=rehearsals.costs_of(noise=lambda *_: GradientNoise(0.5, 50.0)))
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    found = plan(study, measured=history)
    assert [r.batches for r in found.rungs] == [(1,), (2,), (2,), (2,)]
    assert [r["batches"] for r in history.summary()["rungs"]] == [[1], [2], [2], [2]]
    noise = {"trials": found.rungs[0].trials, "median": 100.0, "hidden": 0}
    assert history.summary()["rungs"][0]["noise_scale"] == noise


def test_a_measured_batch_that_the_floor_holds_back_is_foretold(rehearsals) -> None:
    study = rehearsals.study_of(scheduler={"batch": "measured"}, estimates={"samples": 3200})
    assert (
        "at 4 batches an epoch of 3200 samples has 25 steps with batch_size 32; the batch goes no further "
        "than 2 x 32: GPUs still grow"
    ) in plan(study).advice


def test_curves_beyond_a_stop_are_said_to_be_unknown(rehearsals, tmp_path) -> None:
    study = rehearsals.study_of(num_samples=8, scheduler={"variant": "synchronous"})
    rehearsals.into(tmp_path, study)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    as_it_was = plan(study, measured=history)
    assert as_it_was.declared.unknown_epochs == 0
    assert not any("unknown" in sentence for sentence in as_it_was.advice)
    longer = rehearsals.study_of(num_samples=8, scheduler={"variant": "synchronous", "grace_period": 4})
    found = plan(longer, measured=history)
    trained = {t.id: t.epoch for t in history.machine.trials.values()}
    # All train 4 epochs and the best half 8: those that were stopped earlier go beyond what is known.
    assert found.declared.epochs == 8 * 4 + 4 * 4
    assert found.declared.unknown_epochs == found.declared.epochs - sum(trained.values())
    assert any("Their curves are unknown there" in sentence for sentence in found.advice)


def test_a_plan_says_how_many_go_on_at_the_first_rung_and_how_many_were_meant(rehearsals) -> None:
    early = plan(rehearsals.study_of(num_samples=3))
    assert [(r.trials, r.meant) for r in early.rungs[:2]] == [(3, 1), (2, 1)]
    assert early.rungs[-1].meant is None
    text = io.StringIO()
    Console(file=text, width=200).print(forecast_view("x", [early], None))
    assert (
        "2 of 3 go on at epoch 1, where reduction_factor says 1: the first comers are judged against few "
        "(scheduler.min_compared)"
    ) in text.getvalue()
    waiting = plan(rehearsals.study_of(num_samples=3, scheduler={"min_compared": 3}))
    assert [(r.trials, r.meant) for r in waiting.rungs[:2]] == [(3, 1), (1, 1)]
    assert all(r.meant is None for r in plan(rehearsals.study_of(scheduler={"variant": "promotion"})).rungs)


def test_a_ladder_that_grows_is_planned_as_if_settled_and_as_if_it_never_were(rehearsals) -> None:
    scheduler = {"max_t": {"auto": 27}, "reduction_factor": 3, "max_workers": None}
    found = plan(rehearsals.study_of(num_samples=18, scheduler=scheduler))
    assert [r.epochs for r in found.rungs] == [1, 3, 9, 27]
    assert found.rungs[1].trials > 0 == found.rungs[2].trials
    longest, plain = policy(found, "RASDA to 27"), {**scheduler, "max_t": 27}
    to_the_end = plan(rehearsals.study_of(num_samples=18, scheduler=plain))
    for name in ("RASDA synchronous", "Hyperband"):
        one, other = policy(found, name), policy(to_the_end, name)
        assert (one.makespan_s, one.epochs) == (other.makespan_s, other.epochs), "they know no such ladder"
    same = policy(to_the_end, "RASDA elastic")
    assert (longest.makespan_s, longest.epochs) == (same.makespan_s, same.epochs)
    assert longest.epochs > policy(found, "RASDA elastic").epochs
