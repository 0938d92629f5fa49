"""All metrics of all trials, with their times: what the journal says stands, and nothing else."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_rasda.orchestration.curves import Curves, curves_of
from parsl_rasda.orchestration.events import EpochReported, JobEnded, StartJob, StudyStarted, TrialProposed
from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.types import JobId, NodeName, NodeSlots, Outcome, PilotId, Placement, SiteName, TrialId
from tests.unit.orchestration.random_world import Setup, Shape, World

PLACE = Placement(SiteName("a"), PilotId("p"), (NodeSlots(NodeName("n"), (0,)),))


def job(attempt: int) -> JobId:
    return JobId(TrialId("0"), attempt)


def start(attempt: int, epoch: int) -> StartJob:
    return StartJob(job(attempt), {}, PLACE, epoch, 9, ((0, 1),), None)


def report(attempt: int, epoch: int, **metrics: float) -> EpochReported:
    return EpochReported(10.0 * attempt + epoch, job(attempt), epoch, metrics, 1.0, None)


def test_epochs_that_are_trained_again_replace_their_first_report_and_stale_words_count_nothing() -> None:
    curves = Curves()
    curves.add(TrialProposed(1.0, TrialId("0"), {"lr": 1}), (start(1, 0),))
    curves.add(report(1, 1, loss=3.0, accuracy=0.1), ())
    curves.add(report(1, 2, loss=2.0, accuracy=0.2), ())
    curves.add(JobEnded(15.0, job(1), Outcome.LOST), (start(2, 1),))
    curves.add(report(1, 3, loss=0.0), ())
    curves.add(JobEnded(16.0, job(1), Outcome.LOST), ())  # told twice
    curves.add(JobEnded(16.0, JobId(TrialId("unknown"), 1), Outcome.LOST), ())
    curves.add(report(2, 2, loss=2.5, accuracy=0.3), ())
    curves.add(report(2, 2, loss=9.0), ())
    curves.add(StudyStarted(30.0, 1, {}), ())
    curves.add(report(2, 3, loss=9.0), ())
    (curve,) = curves.trials.values()
    assert [(e, p.at, dict(p.metrics)) for e, p in curve.epochs] == [
        (1, 11.0, {"loss": 3.0, "accuracy": 0.1}),
        (2, 22.0, {"loss": 2.5, "accuracy": 0.3}),
    ]
    assert (curve.began, curve.ended, curve.attempts) == (1.0, None, 2)


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(
    st.sampled_from(["stopping", "promotion", "synchronous"]),
    st.integers(0, 2**32),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.booleans(),
)
def test_in_any_world_they_hold_what_the_machine_was_told(
    variant: str, seed: int, fault_rate: float, interactive: bool
) -> None:
    world = World(Setup(variant, "elastic", {"a": Shape(2, 2, 1, interactive)}), seed, fault_rate)
    world.unfair(120)
    world.fair()
    curves = Curves()
    for event, instructions in world.record:
        curves.add(event, instructions)
    for trial in world.machine.trials.values():
        curve = curves.trials[trial.id]
        told = {e: next(iter(p.metrics.values()), None) for e, p in curve.points.items()}
        assert str(told) == str(trial.history), "as strings: NaN is not itself"
        assert (curve.ended is not None) == trial.state.is_final
        assert curve.attempts == trial.attempt


def test_a_summary_has_them_where_readers_want_them(rehearsals, tmp_path: Path) -> None:
    study = rehearsals.study_of()
    rehearsals.into(tmp_path, study)
    history = replay_search(RunDirectory(tmp_path), study.name, study.tune_stages["tune"].tune)
    assert "metrics" not in history.summary()["trial_list"][0]
    found = history.with_curves().summary()
    for trial in found["trial_list"]:
        assert trial["curves"]["val_loss"] == trial["history"]
        assert trial["metrics"]["val_loss"] == trial["metric"]
        assert 0 <= trial["began"] < trial["ended"] <= found["makespan_s"]
    assert found["best"]["metrics"] == {"val_loss": found["best"]["metric"]}
    assert len(curves_of(history.records).trials) == 8
