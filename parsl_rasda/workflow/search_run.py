"""One `tune` stage of a run: its machine, journal, searcher and driver put together."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from parsl_rasda.orchestration.backend import Backend, OpenJob
from parsl_rasda.orchestration.data_locality import paths_in
from parsl_rasda.orchestration.driver import Driver, Observer
from parsl_rasda.orchestration.events import Event, TrialProposed, VersionChanged
from parsl_rasda.orchestration.job_specs import JobSpecBuilder, SiteFacts
from parsl_rasda.orchestration.journal import VERSION, Journal
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.orchestration.replay import ReplayedSearch, changed_method, replay_search
from parsl_rasda.orchestration.requests import requests_after
from parsl_rasda.orchestration.retention import Retention
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.run_names import OfSearch
from parsl_rasda.orchestration.summary import best, cause
from parsl_rasda.study import SiteBase, StudySpec, TuneSpec
from parsl_rasda.tracking.base import Origin
from parsl_rasda.tracking.notices import Notices, Notifier
from parsl_rasda.tracking.observer import Tracking
from parsl_rasda.tracking.registry import trackers_of
from parsl_rasda.types import JSON, Budget, Confirm, JobId, Method, SiteName, StudyState, TrialState
from parsl_rasda.workflow.checkpoint_cleaner import CheckpointCleaner
from parsl_rasda.workflow.dag import of_site

logger = logging.getLogger(__name__)

_MOST_PATHS = 100  # of the inputs, that a site is asked for before each job


@dataclass(slots=True)
class Search:
    """Runs a search to its end, from wherever its journal says it stands.

    Attributes:
        directory: Where its journal and its trials are.
        claimed: The directory of the whole run, which this controller has claimed.
        retry_failed: Trials that failed start afresh.
        search_path: Folders of the study's own modules.
    """

    study: StudySpec
    name: str
    tune: TuneSpec
    sites: Mapping[SiteName, SiteBase]
    backend: Backend
    directory: RunDirectory
    claimed: RunDirectory
    inputs: Mapping[str, JSON]
    known: Sequence[Mapping[str, JSON]] = ()
    retry_failed: bool = False
    search_path: Sequence[str] = ()
    state: StudyState = StudyState.RUNNING
    cause: str = ""
    _history: ReplayedSearch | None = None
    _driver: Driver | None = None
    _taken: int = 0
    _is_leaving: bool = False

    def run(self, progress: ProgressReporter) -> Any:
        """Return the best trial as the next stage receives it; None if `state` is not DONE after it."""
        self.directory.path.mkdir(parents=True, exist_ok=True)
        history = replay_search(
            self.directory, self.study.name, self.tune, seed=self.study.seed, known=self.known
        )
        self._history = history
        machine = history.machine
        trained = (*machine.trials.values(), *machine.confirmation.runs.values())
        retries = self.retry_failed and any(t.state is TrialState.FAILED for t in trained)
        budget = self.tune.budget.limits(time.time())
        more = machine.may_go_on(self.tune.num_samples, budget or Budget(), time.time())
        method = changed_method(machine, history.begun or self.tune, self.tune)
        lacks_runs = machine.confirmation.is_due(self._confirm)
        wanted = more or retries or lacks_runs or method is not None or self._is_told_to_train(machine)
        if machine.state is not StudyState.DONE or wanted:
            self._drive(history, progress, budget, method)
        self.state = history.machine.state
        self.cause = cause(history.machine, history.usage)
        return best(history.machine) if self.state is StudyState.DONE else None

    @property
    def _confirm(self) -> Confirm | None:
        return self.tune.confirm.counts if self.tune.confirm is not None else None

    @property
    def is_reused(self) -> bool:
        """Whether it had ended well before, so that nothing was run."""
        return self._driver is None

    def take_requests(self) -> None:
        """Hand over what the user has told since the last time."""
        if self._driver is not None:
            self._hand_over(self._driver)

    def _hand_over(self, driver: Driver) -> None:
        for request in requests_after(self.directory.requests, self._taken, time.time()):
            driver.tell(request)
            self._taken = request.told or self._taken

    def _is_told_to_train(self, machine: Machine) -> bool:
        """Whether the user has told something since by which a search that is done goes on."""
        has_failed = any(t.state is TrialState.FAILED for t in machine.trials.values())
        told = requests_after(self.directory.requests, machine.told, time.time())
        return any(isinstance(r, TrialProposed) or (r.retry_failed and has_failed) for r in told)

    def interrupt(self) -> None:
        """Let running trials save and leave."""
        self._is_leaving = True
        if self._driver is not None:
            self._driver.interrupt()

    def abandon(self) -> None:
        """Leave at once."""
        if self._driver is not None:
            self._driver.abandon()

    def summary(self) -> dict[str, Any]:
        """Return the JSON document of the search as it stands."""
        return self._history.summary() if self._history else {}

    def _drive(
        self,
        history: ReplayedSearch,
        progress: ProgressReporter,
        budget: Budget | None,
        method: Method | None,
    ) -> None:
        specs = self.job_specs()
        live = [(t.job, t.epoch) for t in history.machine.jobs.values() if t.job is not None]
        there = [OpenJob(j.id, j.placement.site, e) for j, e in live if j.placement.site in self.sites]
        alone = len(self.study.tune_stages) == 1
        number = self.directory.searches_before
        self.backend.begin_search(("" if alone else f"-{self.name}") + (f"-{number}" if number else ""))
        missed: list[Event] = [*specs.events_on_disk(there, time.time()), *self.backend.recover(there)]
        if history.version != VERSION and history.records:
            missed.insert(0, VersionChanged(history.usage.last_at, VERSION))
            if history.difference:
                logger.warning("%s", history.difference)
        self._taken = history.machine.told
        if history.records:  # before it begins again: one that had ended has more to do by that
            known_at = max([history.usage.last_at, *(event.at for event in missed)])
            told = tuple(requests_after(self.directory.requests, self._taken, known_at))
            missed += told
            self._taken = max([self._taken, *(request.told or 0 for request in told)])
        watcher = progress.search(self.name, history.machine, history.usage, alone=alone)
        observers: list[Observer] = [history.usage, watcher]
        cleaner = CheckpointCleaner(
            self.sites, lambda t, s: specs.attempt(JobId(t, 1), s).parent, specs.shared_trial
        )
        observers.append(Retention(history.machine, cleaner.discard))
        tracking, notifier = self._tracking(history), self._notifier(history)
        observers += [OfSearch(watcher) for watcher in (tracking, notifier) if watcher is not None]
        with (
            Journal(self.directory.journal, self.study.name) as journal,
            cleaner,
            tracking or nullcontext(),
            notifier or nullcontext(),
        ):
            driver = Driver(
                history.machine,
                journal,
                self.backend,
                history.searcher,
                replace(specs, obsolete=cleaner.for_job),
                time.time,
                observers,
                on_heartbeat=self.claimed.verify,
                on_write=self.claimed.verify,
            )
            self._hand_over(driver)  # before another thread may
            self._driver = driver
            if self._is_leaving:  # it was interrupted before there was a driver
                driver.interrupt()
            pilots = {name: site.least_pilots for name, site in self.sites.items()}
            later = {name: n for name, site in self.sites.items() if (n := site.most_pilots - pilots[name])}
            driver.run(
                self.tune.num_samples,
                pilots,
                missed,
                retry_failed=self.retry_failed,
                budget=budget,
                method=method,
                later=later,
                confirm=self._confirm,
            )

    def _tracking(self, history: ReplayedSearch) -> Tracking | None:
        """Return what keeps the study's trackers up to date, if it has any."""
        if not self.study.track:
            return None
        alone = len(self.study.tune_stages) == 1
        name = self.study.name if alone else f"{self.study.name}.{self.name}"
        origin = Origin(name, self.directory.mark, self.tune.metric)
        return Tracking(trackers_of(self.study.track, origin, self.directory.path), history.records)

    def _notifier(self, history: ReplayedSearch) -> Notifier | None:
        """Return what tells the study's command of events, if it has one."""
        if self.study.notify is None:
            return None
        notices = Notices(self.tune.metric, history.machine.scheduler.milestones)
        place = self.directory.path
        return Notifier(self.study.notify, notices, self.study.name, place, history.records)

    def job_specs(self) -> JobSpecBuilder:
        """Return what builds the specs of the jobs of this search."""
        facts = {}
        for name, site in self.sites.items():
            inputs, work_dir = self._inputs_at(name), Path(site.work_dir) if site.work_dir else None
            facts[name] = SiteFacts(
                site.accelerator, work_dir, inputs, self._paths_at(inputs), site.rendezvous_s
            )
        return JobSpecBuilder(
            self.study.name,
            self.study.seed,
            self.tune,
            self.directory,
            facts,
            dict(self.inputs),
            tuple(self.search_path),
        )

    def _paths_at(self, here: Mapping[str, JSON]) -> tuple[tuple[str, str], ...]:
        """Return the paths among the inputs of a site that it should have: its own, and what stages made.

        Only an input that is a path, or a list of paths, is one for certain: a string with a slash in a
        mapping may be the name of a group in an HDF5 file.
        """
        needed = {name: self.inputs[name] for name in self.study.stages[self.name].needs}
        texts = (
            (name, text)
            for name, value in {**needed, **here}.items()
            for text in (value if isinstance(value, list) else [value])
            if isinstance(text, str)
        )
        found = ((name, path) for name, text in texts for path in paths_in(text))
        return tuple(islice(found, _MOST_PATHS))

    def _inputs_at(self, site: SiteName) -> dict[str, JSON]:
        """Return the inputs that differ by site: those that are a mapping with the name of every site."""
        here = {name: of_site(value, site, self.sites) for name, value in self.inputs.items()}
        return {name: value for name, value in here.items() if value is not self.inputs[name]}
