"""Runs the stages of a study in the order they need: as calls on its sites, its searches by the driver.

One thread looks after the graph; every search has a thread of its own, which owns its machine.
Results of stages are kept in the run directory (`cache`); beside them is written where each stage
stands (`stage_log`).
"""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parsl_rasda.errors import RasdaError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.admission import AdmittedStudy
from parsl_rasda.orchestration.data_locality import foreseen
from parsl_rasda.orchestration.progress import GuardedProgress, ProgressReporter
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import SiteSpec, StudySpec, TuneStage
from parsl_rasda.types import StudyState
from parsl_rasda.workflow.cache import CachedStage, keep_search
from parsl_rasda.workflow.dag import (
    Call,
    StageResult,
    calls_of,
    ready_stages,
    result_of,
    sites_of,
    sites_of_search,
)
from parsl_rasda.workflow.search_run import Search
from parsl_rasda.workflow.site_pool import SitePool
from parsl_rasda.workflow.stage_log import StageEndedError, StageLog

logger = logging.getLogger(__name__)

_POLL_S = 0.5
EXIT_INTERRUPTED = 130
_LEAVING_S = 60.0  # beyond the margin: pilots and Parsl's processes end
_AGAIN_S = 30.0  # after a second signal
_LAST_WORDS_S = 0.5


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        summary: The JSON document of the (last) search; empty if none began.
        stages: What each finished stage returned.
    """

    state: StudyState
    directory: Path
    summary: Mapping[str, Any]
    stages: Mapping[str, Any]


@dataclass(slots=True)
class WorkflowRun:
    """One passage of a controller through the graph of a study.

    Attributes:
        may_restart: Whether a search begins anew if its inputs or its training code have changed; else
            it goes on with other code, and refuses other inputs.
        retry_failed: Trials that failed start afresh.
    """

    admitted: AdmittedStudy
    run_directory: RunDirectory
    search_path: Sequence[str]
    progress: ProgressReporter
    may_restart: bool = False
    retry_failed: bool = False
    searches: list[Search] = field(default_factory=list)
    one_search: threading.Lock = field(default_factory=threading.Lock)
    warnings: set[str] = field(default_factory=set)
    ending: threading.Event = field(default_factory=threading.Event)
    interrupted: bool = False

    def __post_init__(self) -> None:
        """Let no display end the run."""
        self.progress = GuardedProgress(self.progress)

    @property
    def study(self) -> StudySpec:
        """What is run."""
        return self.admitted.study

    @property
    def sites(self) -> tuple[SiteSpec, ...]:
        """Where."""
        return self.admitted.sites

    @property
    def log(self) -> StageLog:
        """Where its stages stand."""
        return StageLog(self.run_directory, self.progress)

    def run(self) -> RunResult:
        """Run every stage on the study's sites.

        Raises:
            InvalidSettingError: If a search goes with none of the sites.
            StageFailedError: If a stage fails: the first one, once what else was running has ended.
            SiteUnavailableError: If no site can run a stage.
        """
        for name in self.study.tune_stages:
            self._warn_once(foreseen(self.study, name, self.sites)[1])
        pool = SitePool(
            self.sites,
            self.run_directory,
            self.search_path,
            narrowest=min((t.tune.scheduler.num_workers for t in self.study.tune_stages.values()), default=1),
            stages_at_once=self.study.stage_calls_at_once,
            forks_ranks=any(t.tune.training.python is not None for t in self.study.tune_stages.values()),
            study=self.study.name,
        )
        return self.run_in(pool)

    def run_in(self, pool: SitePool) -> RunResult:
        """Run every stage in a pool that is opened for it and closed at its end; raises as `run` does."""
        done: dict[str, StageResult] = {}
        self.log.forget(self.study.stages)
        with ExitStack() as stack:
            margin_s = max(site.checkpoint_margin_s for site in self.sites)
            stack.enter_context(_signals(self._interrupt, margin_s + _LEAVING_S))
            try:
                self._open(pool, stack)
                self._run_graph(done, pool)
                state = StudyState.DONE
            except StageEndedError as ended:
                state = ended.state
            except (StageFailedError, SiteUnavailableError):
                if not self.interrupted:
                    raise
                state = StudyState.INTERRUPTED
        summary = self.searches[-1].summary() if self.searches else {}
        return RunResult(state, self.run_directory.path, summary, {k: v.value for k, v in done.items()})

    def _open(self, pool: SitePool, stack: ExitStack) -> None:
        try:
            stack.enter_context(pool)
        except RasdaError as error:
            for name in ready_stages(self.study, ()):
                self.log.failed(name, error, interrupted=self.interrupted)
            raise

    def _run_graph(self, done: dict[str, StageResult], pool: SitePool) -> None:
        """Run every stage as soon as what it needs is done."""
        running: dict[Future[StageResult], str] = {}
        count = len(self.study.stages)
        with ThreadPoolExecutor(max(1, count), "stage") as threads:
            while len(done) < count:
                for name in ready_stages(self.study, done):
                    if name not in running.values():
                        running[threads.submit(self._run_stage, name, dict(done), pool)] = name
                ended, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                try:
                    self.run_directory.verify()
                    for search in self.searches:
                        search.take_requests()
                    if not self.interrupted and self.run_directory.is_told_to_end:
                        self._interrupt(again=False)
                    done.update({running.pop(future): future.result() for future in ended})
                except BaseException:
                    self._end_all(at_once=False)  # what else is running saves and leaves
                    raise

    def _interrupt(self, *, again: bool) -> None:
        self.interrupted = True
        self._end_all(at_once=again)

    def _end_all(self, *, at_once: bool) -> None:
        self.ending.set()
        for search in self.searches:
            (search.abandon if at_once else search.interrupt)()

    # ------------------------------------------------------------------------------- one stage

    def _run_stage(self, name: str, done: Mapping[str, StageResult], pool: SitePool) -> StageResult:
        try:
            return self._stage_result(name, done, pool)
        except Exception as error:
            self.log.failed(name, error, interrupted=self.interrupted)
            raise

    def _stage_result(self, name: str, done: Mapping[str, StageResult], pool: SitePool) -> StageResult:
        stage = self.study.stages[name]
        sites = tuple(pool.sites)
        at = () if isinstance(stage, TuneStage) else sites_of(stage, done, sites)
        calls = calls_of(stage, done, self.search_path, at=at, sites=sites)
        begin = time.perf_counter()
        if isinstance(stage, TuneStage):
            is_reused, *values = self._search(name, stage, calls[0], done, pool)
        else:
            is_reused, values = CachedStage(name, stage, self.log, pool, self.ending).run(calls)
        result = result_of(stage, calls, values, at)
        shown = None if isinstance(stage, TuneStage) else result.value
        self.log.done(name, shown, time.perf_counter() - begin, reused=is_reused)
        return result

    def _search(
        self, name: str, stage: TuneStage, call: Call, done: Mapping[str, StageResult], pool: SitePool
    ) -> tuple[bool, Any]:
        """Return whether the search had ended before, and its best trial."""
        sites, sentences = sites_of_search(self.study, name, done, self.sites)
        self._warn_once(sentences)
        alone = len(self.study.tune_stages) == 1
        directory = self.run_directory if alone else RunDirectory(self.run_directory.path / name)
        keep_search(self.log.folder(name), name, call, directory, may_restart=self.may_restart)
        with self.one_search:  # a site's slots belong to one ledger at a time
            if self.ending.is_set():
                raise StageEndedError(StudyState.INTERRUPTED)
            self.log.begin(name, [call])
            search = Search(
                self.study,
                name,
                stage.tune,
                sites,
                pool.backend(list(sites)),
                directory,
                self.run_directory,
                call.arguments,
                _known(stage, done),
                self.retry_failed,
                self.search_path,
            )
            self.searches.append(search)
            found = search.run(self.progress)
        if search.state is not StudyState.DONE:
            raise StageEndedError(search.state, search.cause)
        return search.is_reused, found

    def _warn_once(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            if sentence not in self.warnings:
                logger.warning("%s", sentence)
        self.warnings.update(sentences)


def _known(stage: TuneStage, done: Mapping[str, StageResult]) -> list[dict[str, Any]]:
    """Return the configurations that a search begins with: the best one of another search."""
    warm = stage.tune.searcher.warm_start
    return [done[warm].value["config"]] if warm else []


@contextmanager
def _signals(interrupt: Callable[..., None], patience_s: float) -> Iterator[None]:
    """Turn Ctrl-C and a polite kill into an interruption; a second one does not wait for anybody.

    A thread acts on them, since a handler may find any lock held. Whatever hangs meanwhile, the process
    ends in time: as after a SIGKILL, what it leaves behind ends by itself, and `resume` goes on.

    Args:
        interrupt: Called with ``again``, whether it is not the first time.
        patience_s: How long the run may take to end, after the first signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # may be put to in a handler
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, lambda number, _: arrived.put(number)) for name in names}
    thread = threading.Thread(
        target=_act_on_signals, args=(arrived, interrupt, patience_s), name="signals", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        arrived.put(None)
        thread.join()  # what arrived before is acted on
        for name, handler in before.items():
            signal.signal(name, handler)


def _act_on_signals(
    arrived: queue.SimpleQueue[int | None], interrupt: Callable[..., None], patience_s: float
) -> None:
    give_up: float | None = None
    while True:
        try:
            number = arrived.get(timeout=None if give_up is None else max(0.0, give_up - time.monotonic()))
        except queue.Empty:
            words = "the run does not end: it is left as it is, and what it had running ends by itself"
            threading.Thread(target=logger.error, args=(words,), daemon=True).start()  # that may hang, too
            time.sleep(_LAST_WORDS_S)
            os._exit(EXIT_INTERRUPTED)
        if number is None:
            return
        again = give_up is not None
        give_up = min(give_up or math.inf, time.monotonic() + (_AGAIN_S if again else patience_s))
        interrupt(again=again)
