"""An honest winner: when a search is decided, its best trials are trained again with new seeds; pure.

The best of many results is partly luck, so its metric is too good. A confirmation trains the whole schedule
of each candidate from scratch: the same epochs, replicas and batches on each stretch, with another seed. Its
runs are trials of the same machine, with slots, retries and budget like all others, but a set of their own:
while they train, they stand where the search's trials were, so that no scheduler, searcher or `stop_when`
sees them.

Run ``c0003-2`` is the second one of trial ``0003``; its seed follows from that name.
"""

from __future__ import annotations

from collections.abc import Mapping

from parsl_rasda.orchestration.events import StudyStarted
from parsl_rasda.orchestration.fault_model import FaultModel
from parsl_rasda.orchestration.lifecycle import TrialLifecycle
from parsl_rasda.orchestration.run_names import run_name
from parsl_rasda.orchestration.search_record import SearchRecord, Trials
from parsl_rasda.orchestration.stopping import StopWatch, StopWhen
from parsl_rasda.orchestration.trial_record import TrialRecord, best_trials
from parsl_rasda.scheduling.repeating import RepeatingScheduler
from parsl_rasda.types import Confirm, Stretch, StudyState, TrialId, TrialState


class Confirmation:
    """Trains the best trials of a search again.

    Attributes:
        wanted: How, as the last start said; None if not at all.
        candidates: The trials that were the best when it began, the best first.
        runs: Every run there has been, by its name.
        began_at: When the present one began [s].
    """

    def __init__(self, search: SearchRecord, lifecycle: TrialLifecycle, faults: FaultModel) -> None:
        """Work on a search, which is not decided yet."""
        self._search, self._lifecycle, self._faults = search, lifecycle, faults
        self._other: Trials | None = None  # the search's own trials, while those of the confirmation train
        self._cut_off: set[TrialId] = set()
        self._retries = False
        self.wanted: Confirm | None = None
        self.candidates: tuple[TrialId, ...] = ()
        self.runs: dict[TrialId, TrialRecord] = {}
        self.began_at: float | None = None

    @property
    def searched(self) -> SearchRecord | Trials:
        """The search's own trials, wherever they are."""
        return self._search if self._other is None else self._other

    def take_up(self, event: StudyStarted) -> None:
        """Let the search's own trials be taken up first: there may be more to do for them."""
        if self._search.is_confirming:
            self.suspend()
        self.wanted, self._retries = event.confirm, event.retry_failed

    @property
    def is_settled(self) -> bool:
        """Whether every run of the trials that are the best now has come to an end."""
        if self.wanted is None or not self.candidates or self._search.is_confirming:
            return False
        return self.candidates == self._best(self.wanted) and not self._missing(self._planned(self.wanted))

    @property
    def is_wanted(self) -> bool:
        """Whether the search is decided, its budget has lasted, and runs are missing that do not train."""
        search = self._search
        if self.wanted is None or search.is_confirming or search.is_unfinished or search.budget.reason:
            return False
        return bool(self._missing(self._planned(self.wanted)))

    def is_due(self, confirm: Confirm | None) -> bool:
        """Whether a search that has ended lacks runs of its candidates."""
        is_over = self._search.state is StudyState.DONE and not self._search.budget.reason
        return is_over and bool(confirm and self._missing(self._planned(confirm)))

    def begin(self) -> bool:
        """Begin if the search is decided and runs are missing; return whether it does."""
        search, confirm = self._search, self.wanted
        if confirm is None or search.state is not StudyState.RUNNING or not self.is_wanted:
            return False
        planned = self._planned(confirm)
        missing = self._missing(planned)
        self.candidates = self._best(confirm)
        self.began_at = search.now
        for trial in search.trials:
            self._faults.forget(trial)
        for name in missing:
            self._start_afresh(name, planned)
        self._cut_off.clear()
        self._retries = False
        runs = {name: self.runs[name] for name in planned}
        epochs = {name: run.until for name, run in runs.items()}
        stop = StopWatch(StopWhen(), search.settings.metric, search.settings.mode)
        scheduler = RepeatingScheduler(search.scheduler, epochs)
        self._other = Trials(scheduler, stop, runs, len(runs), len(runs) - len(missing))
        search.exchange(self._other)
        search.is_confirming = True
        for name in missing:
            self._lifecycle.enqueue(runs[name])
        return True

    def suspend(self) -> None:
        """Let the search's own trials take their place again; its runs go on when it begins again."""
        search, own = self._search, self._other
        if own is None:
            return
        for run in search.trials.values():
            self._faults.forget(run.id)
            if run.job is not None:
                self._lifecycle.forget_job(run, run.job, has_left=False)
            if run.state is TrialState.RUNNING:
                self._lifecycle.enqueue(run)
            search.cluster_state.dequeue(run.id)
        search.exchange(own)
        self._cut_off = set(own.cut_off)
        self._other = None
        search.is_confirming = False

    def _best(self, confirm: Confirm) -> tuple[TrialId, ...]:
        trials = self.searched.trials.values()
        return tuple(t.id for t in best_trials(trials, self._search.settings.mode, confirm.top))

    def _planned(self, confirm: Confirm) -> dict[TrialId, tuple[TrialRecord, int]]:
        """Return the candidate of each run and its number: one of each candidate, then the second of each."""
        found = [self.searched.trials[trial] for trial in self._best(confirm)]
        return {run_name(t.id, n): (t, n) for n in range(1, confirm.seeds + 1) for t in found}

    def _missing(self, planned: Mapping[TrialId, tuple[TrialRecord, int]]) -> list[TrialId]:
        """Return the runs that have not come to an end, or not by the present schedule of their candidate."""
        return [name for name, (trial, _) in planned.items() if not self._has_ended(name, trial)]

    def _has_ended(self, name: TrialId, trial: TrialRecord) -> bool:
        run = self.runs.get(name)
        if run is None or not run.state.is_final or name in self._cut_off:
            return False
        return run.schedule == _schedule(trial) and not (self._retries and run.state is TrialState.FAILED)

    def _start_afresh(self, name: TrialId, planned: Mapping[TrialId, tuple[TrialRecord, int]]) -> None:
        """Make a run, or let one begin again that has failed or has another schedule now."""
        schedule, run = _schedule(planned[name][0]), self.runs.get(name)
        if run is None:
            age = list(planned).index(name)
            self.runs[name] = TrialRecord(name, age, planned[name][0].config, schedule)
        elif run.schedule != schedule or run.state is TrialState.FAILED:
            run.start_afresh(schedule[0])
            run.schedule = schedule


def _schedule(trial: TrialRecord) -> list[Stretch]:
    """Return the stretches that a trial has trained, up to its last report."""
    end = max(trial.history)
    trained = [s for s in trial.schedule if s.epoch < end]
    return [*trained[:-1], trained[-1].ending_at(end)]
