"""Carries the stages of a study out: as Parsl apps, its searches by the driver, in the order they need.

One thread looks after the graph; every search has a thread of its own, which owns its machine.
Results of stages are kept in the run directory and stand until their code or arguments change;
beside them is written where each stage stands, and why it failed.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx

from parsl_rasda.errors import RasdaError, RunDirectoryError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.data_locality import foreseen
from parsl_rasda.orchestration.progress import View
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import (
    StageRecord,
    forget_record,
    keep_result,
    kept_call,
    kept_names,
    kept_result,
    read_record,
    write_record,
)
from parsl_rasda.study import SiteSpec, Stage, StudySpec, TuneStage
from parsl_rasda.types import SiteName, StageState, StudyState
from parsl_rasda.workflow.dag import (
    Call,
    StageResult,
    calls_of,
    check_sites,
    ready_stages,
    result_of,
    sites_of,
    sites_of_search,
    stage_graph,
    under_kept_names,
)
from parsl_rasda.workflow.search_run import Search
from parsl_rasda.workflow.site_pool import Places, outcome

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_LOOK_CALLS_S = 0.2


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


class _StageEndedError(Exception):
    """A stage has ended without a result, and nothing was raised; what comes after it cannot run."""

    def __init__(self, state: StudyState, cause: str = "") -> None:
        super().__init__(state, cause)
        self.state, self.cause = state, cause


@dataclass(slots=True)
class Session:
    """One passage of a controller through the graph of a study.

    Attributes:
        may_restart: Whether a search begins anew if its inputs or its training code have changed; else
            it goes on with other code, and refuses other inputs.
    """

    study: StudySpec
    sites: tuple[SiteSpec, ...]
    run_directory: RunDirectory
    search_path: Sequence[str]
    view: View
    may_restart: bool = False
    searches: list[Search] = field(default_factory=list)
    one_search: threading.Lock = field(default_factory=threading.Lock)
    told: set[str] = field(default_factory=set)
    ending: threading.Event = field(default_factory=threading.Event)
    interrupted: bool = False

    def run(self) -> RunResult:
        """Run every stage on the study's sites.

        Raises:
            InvalidSettingError: If the study does not go with its sites, or a search with none of them.
            StageFailedError: If a stage fails: the first one, once what else was running has ended.
            SiteUnavailableError: If no site can run a stage.
        """
        narrowest = min((t.tune.scheduler.num_workers for t in self.study.tune_stages.values()), default=1)
        check_sites(self.study, [SiteName(site.name) for site in self.sites])
        for name in self.study.tune_stages:
            self._tell(foreseen(self.study, name, self.sites)[1])
        places = Places(
            self.sites,
            self.run_directory,
            self.search_path,
            narrowest=narrowest,
            stages_at_once=self.study.stage_calls_at_once,
            study=self.study.name,
        )
        return self.run_at(places)

    def run_at(self, places: Places) -> RunResult:
        """Run every stage at places that are opened for it and closed at its end; raises as `run` does."""
        done: dict[str, StageResult] = {}
        graph = stage_graph(self.study)
        for name in graph:
            forget_record(self._folder(name))
        with ExitStack() as stack:
            stack.enter_context(_signals(self._interrupt))
            try:
                self._open(places, stack, graph)
                self._run_graph(graph, done, places)
                state = StudyState.DONE
            except _StageEndedError as ended:
                state = ended.state
            except (StageFailedError, SiteUnavailableError):
                if not self.interrupted:
                    raise
                state = StudyState.INTERRUPTED
        summary = self.searches[-1].summary() if self.searches else {}
        return RunResult(state, self.run_directory.path, summary, {k: v.value for k, v in done.items()})

    def _open(self, places: Places, stack: ExitStack, graph: nx.DiGraph[str]) -> None:
        try:
            stack.enter_context(places)
        except RasdaError as error:
            for name in ready_stages(graph, {}):
                self._note_end(name, error)
            raise

    def _run_graph(self, graph: nx.DiGraph[str], done: dict[str, StageResult], places: Places) -> None:
        """Run every stage as soon as what it needs is done."""
        running: dict[Future[StageResult], str] = {}
        with ThreadPoolExecutor(max(1, len(graph)), "stage") as threads:
            while len(done) < len(graph):
                for name in ready_stages(graph, done):
                    if name not in running.values():
                        running[threads.submit(self._run_stage, name, dict(done), places)] = name
                ended, _ = wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                self.run_directory.beat()
                try:
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

    def _run_stage(self, name: str, done: Mapping[str, StageResult], places: Places) -> StageResult:
        try:
            return self._carry_out(name, done, places)
        except Exception as error:
            self._note_end(name, error)
            raise

    def _carry_out(self, name: str, done: Mapping[str, StageResult], places: Places) -> StageResult:
        stage = self.study.stages[name]
        sites = tuple(places.sites)
        at = () if isinstance(stage, TuneStage) else sites_of(stage, done, sites)
        calls = calls_of(stage, done, self.search_path, at=at, sites=sites)
        begin = time.perf_counter()
        if isinstance(stage, TuneStage):
            is_reused, *values = self._search(name, stage, calls[0], done, places)
        else:
            is_reused, values = self._call_all(name, stage, calls, places)
        result = result_of(stage, calls, values, at)
        shown = None if isinstance(stage, TuneStage) else result.value
        self._note(name, replace(self._record(name), state=StageState.DONE, at=time.time(), result=shown))
        self.view.stage_ended(name, time.perf_counter() - begin, reused=is_reused)
        return result

    def _search(
        self, name: str, stage: TuneStage, call: Call, done: Mapping[str, StageResult], places: Places
    ) -> tuple[bool, Any]:
        """Return whether the search had ended before, and its best trial."""
        sites, sentences = sites_of_search(self.study, name, done, self.sites)
        self._tell(sentences)
        alone = len(self.study.tune_stages) == 1
        directory = self.run_directory if alone else RunDirectory(self.run_directory.path / name)
        self._take_up(name, call, directory)
        with self.one_search:  # a site's slots belong to one ledger at a time
            if self.ending.is_set():
                raise _StageEndedError(StudyState.INTERRUPTED)
            self._begin(name, [call])
            search = Search(
                self.study,
                name,
                stage.tune,
                sites,
                places.runner(list(sites)),
                directory,
                self.run_directory,
                call.arguments,
                _known(stage, done),
            )
            self.searches.append(search)
            found = search.run(self.view)
        if search.state is not StudyState.DONE:
            raise _StageEndedError(search.state, search.cause)
        return search.is_reused, found

    def _take_up(self, name: str, call: Call, directory: RunDirectory) -> None:
        """Let a search go on that still stands, and begin anew where it does not.

        Raises:
            RunDirectoryError: If it was begun with other inputs, and must not begin anew.
        """
        folder = self._folder(name)
        kept = kept_call(folder, call.name) if directory.journal.exists() else None
        if kept is not None and kept["key"] != call.key:
            if self.may_restart:
                aside = directory.set_aside()
                logger.warning(
                    "search %s begins anew: what it depends on has changed; before=%s", name, aside
                )
            elif kept.get("inputs") != call.inputs:
                found = f"the search {name!r} was begun with other inputs: a stage before it has changed"
                advice = f"`parsl-rasda run` with --dir {directory.path} begins it anew; what it has stays."
                raise RunDirectoryError(str(directory.path), found, advice)
        keep_result(folder, call.name, call.key, {"result": None, "inputs": call.inputs})

    def _call_all(
        self, name: str, stage: Stage, calls: Sequence[Call], places: Places
    ) -> tuple[bool, list[Any]]:
        """Return whether nothing had to be called, and what each call has returned."""
        folder = self._folder(name)
        calls = under_kept_names(calls, kept_names(folder))
        found = {call.name: kept_result(folder, call.name, call.key) for call in calls}
        missing = [call for call in calls if found[call.name] is None]
        self._begin(name, calls)
        queued: Sequence[Call] = missing
        running: dict[Future[dict[str, Any]], Call] = {}
        while queued or running:
            queued = self._submit(name, stage, queued, running, places)
            ended, _ = wait(running, timeout=_LOOK_CALLS_S, return_when=FIRST_COMPLETED)
            failures: list[RasdaError] = []
            for future in ended:  # results are kept as they come, also beside a failure
                call = running.pop(future)
                try:
                    found[call.name] = result = outcome(name, future)
                except StageFailedError as error:
                    where = f"call {call.name}: " if len(calls) > 1 else ""
                    failures.append(StageFailedError(name, f"{where}{error.cause}"))
                except SiteUnavailableError as error:
                    failures.append(error)
                else:
                    keep_result(folder, call.name, call.key, result)
            if failures:
                raise failures[0]
            if (queued or running) and self.ending.is_set():
                raise _StageEndedError(StudyState.INTERRUPTED)
            if not running and queued:  # other stages are at work on its sites
                self.ending.wait(_LOOK_CALLS_S)
        return not missing, [(found[call.name] or {})["result"] for call in calls]

    def _submit(
        self,
        name: str,
        stage: Stage,
        queued: Sequence[Call],
        running: dict[Future[dict[str, Any]], Call],
        places: Places,
    ) -> Sequence[Call]:
        """Start the calls that find room, and return those that do not; one full site delays no other."""
        left, full = [], set[SiteName | None]()
        for call in queued:
            future = None if call.site in full else places.submit(name, stage, call)
            if future is None:
                full.add(call.site)
                left.append(call)
            else:
                running[future] = call
        return left

    def _tell(self, sentences: Sequence[str]) -> None:
        """Warn of each thing once."""
        for sentence in sentences:
            if sentence not in self.told:
                logger.warning("%s", sentence)
        self.told.update(sentences)

    # ----------------------------------------------------------------------------- its record

    def _folder(self, name: str) -> Path:
        return self.run_directory.stages / name

    def _record(self, name: str) -> StageRecord:
        return read_record(self._folder(name))

    def _begin(self, name: str, calls: Sequence[Call]) -> None:
        keys = {call.name: call.key for call in calls}
        self._note(name, StageRecord(StageState.RUNNING, time.time(), keys))
        self.view.stage_started(name, len(calls))

    def _note(self, name: str, record: StageRecord) -> None:
        """Write down where a stage stands, unless another controller has taken over."""
        with contextlib.suppress(RunDirectoryError):
            self.run_directory.verify()
            write_record(self._folder(name), record)

    def _note_end(self, name: str, error: Exception) -> None:
        """Write down why a stage has no result; one that was only told to leave has not failed."""
        before = self._record(name)
        state, cause, is_curable = _verdict(error)
        if self.interrupted or state is StageState.INTERRUPTED:
            if before.state is StageState.RUNNING:
                self._note(name, replace(before, state=StageState.INTERRUPTED, at=time.time()))
            return
        ended = replace(before, state=state, at=time.time(), cause=cause, is_curable=is_curable)
        self._note(name, ended)
        self.view.stage_failed(name, cause)


def _verdict(error: Exception) -> tuple[StageState, str, bool]:
    """Return where an error leaves its stage, why in words, and whether `resume` may help."""
    match error:
        case _StageEndedError():
            return StageState(error.state.value), error.cause, error.state is not StudyState.FAILED
        case SiteUnavailableError():
            return StageState.NO_SITE, str(error), True
        case StageFailedError():
            return StageState.FAILED, error.cause, True
        case RasdaError():
            return StageState.FAILED, str(error), False
        case _:
            return StageState.FAILED, f"{type(error).__name__}: {error}", True


def _known(stage: TuneStage, done: Mapping[str, StageResult]) -> list[dict[str, Any]]:
    """Return the configurations that a search begins with: the best one of another search."""
    warm = stage.tune.searcher.warm_start
    return [done[warm].value["config"]] if warm else []


@contextmanager
def _signals(interrupt: Any) -> Iterator[None]:
    """Turn Ctrl-C and a polite kill into an interruption; a second one does not wait for anybody."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        del frame
        seen.append(number)
        interrupt(again=len(seen) > 1)

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, handle) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
