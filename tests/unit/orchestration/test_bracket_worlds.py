"""Brackets in any world: faults, deaths and longer ladders change none, and a replay decides the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.brackets import bracket_of, bracket_rows
from parsl_rasda.types import Method, StudyState, TrialState
from tests.unit.orchestration.random_world import Setup, World
from tests.unit.orchestration.test_changed_method import ROOMY, VARIANTS, ladder, replays


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("brackets", [3, "auto"])
def test_in_any_world_a_search_ends_and_is_replayed(variant: str, brackets: int | str) -> None:
    @settings(max_examples=settings.default.max_examples, deadline=None)
    @given(st.sampled_from([None, 16, 20]), st.integers(0, 2**32))
    def check(longer: int | None, seed: int) -> None:
        setup = Setup(variant, "elastic", ROOMY, trials=10, max_t=8, max_workers=4, brackets=brackets)
        world = World(setup, seed, 0.1)
        world.unfair(80)
        before = {trial: bracket_of(world.machine, trial) for trial in world.machine.trials}
        if longer is not None:
            world.method = Method(ladder(8, longer), 4, "strict")
            world.start_controller()
        world.unfair(60)
        world.fair()
        after = {trial: bracket_of(world.machine, trial) for trial in world.machine.trials}
        assert after.items() >= before.items()
        assert world.finished is not None
        if world.finished.state is not StudyState.NO_SITE:
            assert set(world.concluded) == set(world.machine.trials)
            ended = [t for t in world.machine.trials.values() if t.state is TrialState.COMPLETED]
            assert {t.epoch for t in ended} <= {longer or 8}
            assert sum(row["completed"] for row in bracket_rows(world.machine)) == len(ended)
        for trial in world.machine.trials.values():
            grace_period = world.machine.scheduler.milestones[after[trial.id] or 0]
            assert trial.state is not TrialState.STOPPED or trial.epoch >= grace_period
            assert [s.epoch for s in trial.schedule[1:]] == [s.until for s in trial.schedule[:-1]]
        assert replays(setup, world)

    check()
