from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import pytest

from parsl_rasda.errors import ControllerFailedError, JournalError
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.backend import BackendFailed
from parsl_rasda.orchestration.driver import replay
from parsl_rasda.orchestration.events import (
    EndJob,
    EpochReported,
    FinishStudy,
    JobEnded,
    ObserveTrial,
    ProposeTrial,
    RequestPilot,
    SearchExhausted,
    StartJob,
    StudyStarted,
    TimerFired,
    TrialFinished,
    TrialProposed,
)
from parsl_rasda.orchestration.journal import Journal, Record, read
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.protocol import Checkpoint
from parsl_rasda.testing.backends import FakeBackend, Fault
from parsl_rasda.types import Blame, JobId, Outcome, StudyState, TrialId, TrialState
from tests.unit.orchestration.small_study import SITE, curve, driver, tune

EVERYWHERE = {SITE: 1}


class LoggingSearcher:
    """Proposes 1, 2, 3...; remembers what it was told and in which order."""

    def __init__(self, most: int = 1000) -> None:
        self.told: list[tuple] = []
        self._numbers, self._most = count(1), most

    def propose(self, trial):
        number = next(self._numbers)
        if number > self._most:
            return None
        self.told.append(("configuration", trial))
        return {"lr": number / 100}

    def restore(self, trial, config):
        next(self._numbers)
        self.told.append(("configuration", trial))

    def observe(self, trial, epoch, metric):
        self.told.append(("observe", trial, epoch, metric))

    def conclude(self, trial, metric):
        self.told.append(("conclude", trial, metric))


class SuspiciousRunner(FakeBackend):
    """Reads the journal before it does anything: what it is told must be there."""

    def __init__(self, journal: Path, **values) -> None:
        super().__init__(curve, **values)
        self._journal, self.checked = journal, 0

    def _must_know(self, instruction_of) -> None:
        written = [i for record in read(self._journal) for i in record.instructions]
        assert any(map(instruction_of, written))
        self.checked += 1

    def request_pilot(self, request):
        self._must_know(lambda i: i == request)
        super().request_pilot(request)

    def start_job(self, order, placement):
        self._must_know(lambda i: isinstance(i, StartJob) and i.job == order.job)
        super().start_job(order, placement)

    def continue_job(self, answer):
        self._must_know(lambda i: i == answer)
        super().continue_job(answer)

    def end_job(self, end):
        self._must_know(lambda i: i == end)
        super().end_job(end)


class BadOnce(FakeBackend):
    """Its only slot breaks the first job."""

    def open(self, post):
        self.post = post
        super().open(post)

    def start_job(self, order, placement):
        if order.job.attempt == 1 and order.trial == "0000":
            self.post(JobEnded(5.0, order.job, Outcome.LOST, "ECC", blame=Blame.SLOT))
        else:
            super().start_job(order, placement)


def test_the_clock_tells_the_machine_when_to_try_again_and_only_then(tmp_path: Path) -> None:
    run = driver(tmp_path, BadOnce(curve, gpus_per_node=1), tune(num_samples=1))
    assert run.run(1, EVERYWHERE) == FinishStudy(StudyState.DONE)
    records = list(read(tmp_path / "journal.jsonl"))
    (fired,) = (r for r in records if isinstance(r.event, TimerFired))
    assert [type(i) for i in fired.instructions] == [StartJob], "a last try, since nothing else is left"


def test_slots_are_free_when_the_controller_knows_it(tmp_path: Path) -> None:
    """Ranks date a report before their processes end; a machine that waits must learn how long it waits."""
    clock = count(1_000_000)
    run = driver(tmp_path, FakeBackend(curve), clock=lambda: float(next(clock)))
    assert run.run(6, EVERYWHERE) == FinishStudy(StudyState.DONE)
    ends = [r.event for r in read(tmp_path / "journal.jsonl") if isinstance(r.event, JobEnded)]
    assert ends
    assert all(end.at > 1_000_000 for end in ends), "the backend's own times are small"


@pytest.mark.parametrize("variant", ["stopping", "promotion", "synchronous"])
@pytest.mark.parametrize("interactive", [True, False])
def test_a_study_is_carried_through_and_written_down_before_it_is_acted_on(
    tmp_path: Path, variant: str, interactive: bool
) -> None:
    runner = SuspiciousRunner(tmp_path / "journal.jsonl", interactive=interactive)
    run = driver(tmp_path, runner, tune(scheduler={"variant": variant}))
    assert run.run(6, EVERYWHERE) == FinishStudy(StudyState.DONE)
    assert runner.checked > 12
    assert all(t.state.is_final for t in run.machine.trials.values())
    assert not runner.trainings


def test_orders_say_all_that_ranks_must_know(tmp_path: Path) -> None:
    runner = FakeBackend(curve, nodes=2, gpus_per_node=2)
    driver(tmp_path, runner, tune(scheduler={"variant": "promotion"})).run(6, EVERYWHERE)
    first = runner.orders[0]
    assert (first.study, first.trial, first.attempt, first.epoch, first.until) == ("study", "0000", 1, 0, 1)
    assert (first.world_size, len(first.slots), first.metric, first.mode) == (1, 1, "loss", "min")
    assert first.directory == str((tmp_path / "trials/0000/attempt-1").resolve())
    assert first.resume_from is None
    later = next(o for o in runner.orders if o.epoch)
    assert later.resume_from is not None
    assert later.resume_from.endswith(f"epoch-{later.epoch:06d}")
    assert len({o.seed for o in runner.orders}) == 6, "one seed a trial, kept by its attempts"


def test_ctrl_c_lets_jobs_leave_and_the_study_can_go_on(tmp_path: Path) -> None:
    reasons: list[str] = []

    class Impatient(FakeBackend):
        def continue_job(self, answer):
            run.interrupt()
            super().continue_job(answer)

        def end_job(self, end):
            reasons.append(end.reason)
            super().end_job(end)

    runner = Impatient(curve)
    run = driver(tmp_path, runner)
    assert run.run(6, EVERYWHERE) == FinishStudy(StudyState.INTERRUPTED)
    assert "interrupted" in reasons
    assert not run.machine.jobs
    again = driver(tmp_path, FakeBackend(curve), machine=run.machine, searcher=run.searcher)
    assert again.run(6, EVERYWHERE).state is StudyState.DONE


def test_a_second_ctrl_c_ends_at_once_whatever_still_runs(tmp_path: Path) -> None:
    class Stubborn(FakeBackend):
        closed = False

        def start_job(self, order, placement):
            self.orders.append(order)  # it never says anything
            if len(self.orders) == 4:
                run.interrupt()
                run.abandon()

        def close(self):
            self.closed = True

    runner = Stubborn(curve)
    run = driver(tmp_path, runner)
    assert run.run(6, EVERYWHERE).state is StudyState.INTERRUPTED
    assert runner.closed
    assert len(run.machine.jobs) == 4, "they are taken up again by the next controller"


def test_what_happened_without_a_controller_is_booked_but_not_acted_on(tmp_path: Path) -> None:
    first = driver(tmp_path, FakeBackend(curve))
    events = [StudyStarted(1.0, 1, EVERYWHERE)]
    runner = FakeBackend(curve)
    runner.open(events.append)
    for instruction in first.record([events.pop()]):  # a controller that dies with one job running
        runner.request_pilot(instruction)
    first.record(list(events))
    assert [str(job) for job in first.machine.jobs] == ["0000.1"]
    job = JobId(TrialId("0000"), 1)
    missed = [
        EpochReported(50.0, job, 1, {"loss": 0.5}, 1.0, Checkpoint("c1", 1)),
        JobEnded(51.0, job, Outcome.PREEMPTED, "lease", "c1"),
    ]
    later = FakeBackend(curve)
    second = driver(tmp_path, later, machine=first.machine, searcher=first.searcher)
    assert second.run(1, EVERYWHERE, missed).state is StudyState.DONE
    assert later.orders[0].epoch == 1, "the epoch was not trained again"
    assert later.orders[0].resume_from == "c1"
    written = list(read(tmp_path / "journal.jsonl"))
    events = [record.event for record in written]
    assert missed == [e for e in events if e in missed]
    assert events.index(missed[1]) < max(i for i, e in enumerate(events) if isinstance(e, StudyStarted))
    started = [i.job for r in written for i in r.instructions if isinstance(i, StartJob)]
    assert [o.attempt for o in later.orders] == [j.attempt for j in started if j.attempt > 2]


def test_proposals_are_answered_before_anything_else(tmp_path: Path) -> None:
    driver(tmp_path, FakeBackend(curve)).run(6, EVERYWHERE)
    records = list(read(tmp_path / "journal.jsonl"))
    for record, following in pairwise(records):
        asked = [i.trial for i in record.instructions if isinstance(i, ProposeTrial)]
        if asked:
            assert isinstance(following.event, TrialProposed)
            assert following.event.trial == asked[0]
    assert [r.event.trial for r in records if isinstance(r.event, TrialProposed)] == [
        f"{i:04d}" for i in range(6)
    ]


def test_an_exhausted_search_ends_the_study_with_what_there_is(tmp_path: Path) -> None:
    run = driver(tmp_path, FakeBackend(curve), searcher=LoggingSearcher(most=2))
    assert run.run(6, EVERYWHERE).state is StudyState.DONE
    assert (len(run.machine.trials), run.machine.num_samples) == (2, 2)
    assert sum(isinstance(r.event, SearchExhausted) for r in read(tmp_path / "journal.jsonl")) == 1


def test_an_exhausted_search_is_asked_again_for_a_larger_budget_only(tmp_path: Path) -> None:
    machine, searcher = build_machine(tune()), LoggingSearcher(most=2)
    asked = []
    for wanted in (6, 6, 2, 7):
        run = driver(tmp_path, FakeBackend(curve), machine=machine, searcher=searcher)
        before = len(list(read(tmp_path / "journal.jsonl")))
        assert run.run(wanted, EVERYWHERE).state is StudyState.DONE
        records = list(read(tmp_path / "journal.jsonl"))[before:]
        asked.append(sum(isinstance(i, RequestPilot) for r in records for i in r.instructions))
        assert machine.num_samples == 2
    assert asked == [1, 0, 0, 1]


def test_the_searcher_hears_the_same_live_and_in_recovery(tmp_path: Path) -> None:
    faults = {JobId(TrialId("0001"), 1): Fault(1, Outcome.FAILED, "raised")}
    live, recovered = LoggingSearcher(), LoggingSearcher()
    spec = tune(num_samples=12)
    driver(tmp_path, FakeBackend(curve, faults=faults), spec, searcher=live).run(12, EVERYWHERE)
    assert {kind for kind, *_ in live.told} == {"configuration", "observe", "conclude"}
    assert ("conclude", "0001", None) in live.told
    replay(read(tmp_path / "journal.jsonl"), build_machine(spec), recovered, [])
    assert recovered.told == live.told


def test_a_proposal_knows_what_was_just_learnt(tmp_path: Path) -> None:
    searcher = LoggingSearcher()
    driver(tmp_path, FakeBackend(curve, gpus_per_node=1), searcher=searcher).run(6, EVERYWHERE)
    records = list(read(tmp_path / "journal.jsonl"))
    both = [
        r
        for r in records
        if any(isinstance(i, ProposeTrial) for i in r.instructions)
        and any(isinstance(i, ObserveTrial | TrialFinished) for i in r.instructions)
    ]
    for record in both:
        asked = next(i.trial for i in record.instructions if isinstance(i, ProposeTrial))
        before = searcher.told[: searcher.told.index(("configuration", asked))]
        for i in record.instructions:
            if isinstance(i, TrialFinished):
                assert ("conclude", i.trial, i.metric) in before


def test_a_replay_that_decides_otherwise_is_refused(tmp_path: Path) -> None:
    driver(tmp_path, FakeBackend(curve)).run(6, EVERYWHERE)
    records = list(read(tmp_path / "journal.jsonl"))
    records[9] = Record(records[9].event, (EndJob(JobId(TrialId("0000"), 1), "stopped"),))
    with pytest.raises(JournalError, match=r"journal.jsonl:1[01]: this version .* decides otherwise"):
        replay(records, build_machine(tune()), LoggingSearcher(), [])


def test_sites_that_refuse_end_the_study_without_one(tmp_path: Path) -> None:
    run = driver(tmp_path, FakeBackend(curve, refusals=9))
    assert run.run(6, EVERYWHERE) == FinishStudy(StudyState.NO_SITE, "the batch system said no")
    assert run.run(6, EVERYWHERE).state is StudyState.NO_SITE
    assert run.run(6, EVERYWHERE).state is StudyState.NO_SITE
    assert run.run(6, EVERYWHERE).state is StudyState.DONE, "the tenth request is granted"


def test_losses_and_preemptions_on_the_way_leave_no_trace_but_faults(tmp_path: Path) -> None:
    faults = {
        JobId(TrialId("0000"), 1): Fault(1),
        JobId(TrialId("0000"), 2): Fault(2),
        JobId(TrialId("0002"), 1): Fault(1, Outcome.PREEMPTED, "walltime"),
        JobId(TrialId("0003"), 1): Fault(1, Outcome.FAILED, "ValueError"),
    }
    usage = Usage()
    run = driver(tmp_path, FakeBackend(curve, faults=faults), observers=[usage])
    assert run.run(6, EVERYWHERE).state is StudyState.DONE
    failed = {t.id for t in run.machine.trials.values() if t.state is TrialState.FAILED}
    assert failed == {"0003"}
    assert run.machine.trials[TrialId("0003")].reason == "ValueError"
    assert (len(usage.faults), usage.preemptions) == (3, 1)


def test_the_controller_shows_that_it_lives_also_when_it_is_busy(tmp_path: Path) -> None:
    beats: list[float] = []
    now = count(0, 5)  # seconds pass whenever somebody looks at the clock
    run = driver(
        tmp_path, FakeBackend(curve), clock=lambda: float(next(now)), on_heartbeat=lambda: beats.append(1.0)
    )
    run.run(6, EVERYWHERE)
    assert len(beats) >= next(now) / 5 / 20, "no silence of more than a few beats"
    assert len(beats) > 2


def test_a_runner_is_closed_whatever_happens(tmp_path: Path) -> None:
    class Broken(FakeBackend):
        closed = False

        def start_job(self, order, placement):
            raise OSError("no space left on device")

        def close(self):
            self.closed = True

    runner = Broken(curve)
    with pytest.raises(OSError, match="no space left"):
        driver(tmp_path, runner).run(6, EVERYWHERE)
    assert runner.closed


def test_a_journal_that_cannot_be_written_stops_the_study_before_it_acts(tmp_path: Path) -> None:
    class Full(Journal):
        def append(self, records):
            records = list(records)
            if any(isinstance(i, StartJob) for r in records for i in r.instructions):
                raise OSError("no space left on device")
            super().append(records)

    runner = FakeBackend(curve)
    run = driver(tmp_path, runner, journal=Full(tmp_path / "journal.jsonl", "study"))
    with pytest.raises(OSError, match="no space left"):
        run.run(6, EVERYWHERE)
    assert runner.orders == []


def test_a_bug_of_the_backend_ends_the_run_in_words(tmp_path: Path) -> None:
    class Broken(FakeBackend):
        def open(self, post):
            self.tell, self.is_closed = post, False
            super().open(post)

        def start_job(self, order, placement):
            self.tell(BackendFailed(KeyError("lost")))  # and the job is never heard of again

        def close(self):
            self.is_closed = True
            super().close()

    runner = Broken(curve)
    with pytest.raises(ControllerFailedError, match=r"KeyError: 'lost'.*resume"):
        driver(tmp_path, runner).run(6, EVERYWHERE)
    assert runner.is_closed


def test_code_that_is_edited_in_mid_search_is_written_down_with_the_trials_that_ran_it(tmp_path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "train.py").write_text("from helper import value\n\n\ndef train(trial):\n    value()\n")
    helper = folder / "helper.py"
    helper.write_text("def value():\n    return 1\n")
    spec = tune(training={"python": "train:train"})

    def edit(order, epoch):
        if order.trial == "0002":
            helper.write_text("def value():\n    return 1000\n")
        return curve(order, epoch)

    usage, machine = Usage(), build_machine(spec)
    first = driver(tmp_path, FakeBackend(edit, gpus_per_node=1), spec, observers=[usage], machine=machine)
    first.job_specs = replace(first.job_specs, search_path=(str(folder),))
    first.run(6, EVERYWHERE)
    codes = {trial.id: trial.codes for trial in machine.trials.values()}
    assert codes[TrialId("0000")] == codes[TrialId("0001")]
    assert len({code for each in codes.values() for code in each}) == 2
    assert any(fault.what == "code" and "helper" in fault.cause for fault in usage.faults)
    again = build_machine(spec)
    replay(read(tmp_path / "journal.jsonl"), again, LoggingSearcher(), [])
    assert {trial.id: trial.codes for trial in again.trials.values()} == codes
