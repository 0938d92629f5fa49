"""Runs a study: its stages as Parsl apps, its searches by the driver, in the order they need.

One thread looks after the graph; every search has a thread of its own, which owns its machine.
Results of stages are kept in the run directory and stand until their code or arguments change.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parsl_rasda.errors import InvalidSettingError, RunDirectoryError, StageFailedError
from parsl_rasda.orchestration.history import load_run, save_run, search_path_of
from parsl_rasda.orchestration.rundir import RunDirectory, replace_file
from parsl_rasda.orchestration.view import View
from parsl_rasda.pipeline.places import Places, check_folder, outcome
from parsl_rasda.pipeline.plan import (
    Call,
    StageResult,
    calls_of,
    check_sites,
    ready_stages,
    result_of,
    sites_of,
    stage_graph,
)
from parsl_rasda.pipeline.search import Search
from parsl_rasda.study import SiteSpec, Stage, StudySpec, TuneStage, dump_study, load_study
from parsl_rasda.vocabulary import SiteName, StudyState

_LOOK_S = 0.5


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


def run_study(
    study: StudySpec, sites: Sequence[SiteSpec], directory: Path, *, search_path: Sequence[Path], view: View
) -> RunResult:
    """Run a study in a new directory, or go on with the same study in one that it was run in before.

    Args:
        study: What to run.
        sites: Where.
        directory: Its run directory; created.
        search_path: Folders where the study's functions are, before Python's own path.
        view: Who watches.

    Raises:
        RunDirectoryError: If the directory holds a search of another study, or is being run.
        StageFailedError: If a stage other than a search fails; what came before stands, `resume`
            goes on from there.
        SiteUnavailableError: If no site can run a stage.
    """
    run = RunDirectory(directory.resolve())
    check_folder(run.path)
    _refuse_other_search(run, study)
    with run.controlled():
        save_run(run, study, sites, search_path)
        paths = search_path_of(run)
        return _Session(study, tuple(sites), run, paths, view).run()


def resume_study(directory: Path, overrides: Sequence[str], *, view: View) -> RunResult:
    """Take a run up where it ended, after any death.

    Args:
        directory: Its run directory.
        overrides: ``key=value``; only the number of trials may change.
        view: Who watches.

    Raises:
        RunDirectoryError: If the directory is not one of a run, or is being run.
        InvalidSettingError: If an override changes more than the number of trials.
    """
    run = RunDirectory(directory.resolve())
    study, sites = load_run(run)
    wanted = load_study(run.study_file, overrides, check_targets=False) if overrides else study
    _check_amendment(study, wanted)
    paths = search_path_of(run)
    with run.controlled():
        if wanted != study:
            replace_file(run.study_file, dump_study(wanted))
        return _Session(wanted, sites, run, paths, view).run()


def _refuse_other_search(run: RunDirectory, study: StudySpec) -> None:
    """Refuse a directory in which the search of another study has begun."""
    if run.study_file.exists() and not run.origin.exists():
        advice = "Choose another --dir; a run would write over it."
        raise RunDirectoryError(str(run.path), "holds a study.yaml that is not of a run", advice)
    begun = any(run.path.glob("journal.jsonl")) or any(run.path.glob("*/journal.jsonl"))
    if begun and load_run(run)[0] != study:
        advice = f"Go on with it by `parsl-rasda resume {run.path}`, or choose another --dir."
        raise RunDirectoryError(str(run.path), "holds the search of another study", advice)


def _check_amendment(study: StudySpec, wanted: StudySpec) -> None:
    for name, stage in study.tune_stages.items():
        new = wanted.tune_stages[name].tune
        if new.num_samples < stage.tune.num_samples:
            allowed = f"at least {stage.tune.num_samples}, the number the run has"
            raise InvalidSettingError(f"stages.{name}.tune.num_samples", new.num_samples, allowed)
        if new.num_samples > stage.tune.num_samples and new.scheduler.variant == "synchronous":
            allowed = "the number the run has: a synchronous rung waits for all of them"
            raise InvalidSettingError(f"stages.{name}.tune.num_samples", new.num_samples, allowed)
    if _without_samples(study) != _without_samples(wanted):
        raise InvalidSettingError(
            "--set", "another setting", "tune.num_samples, the only one that may change"
        )


def _without_samples(study: StudySpec) -> dict[str, Any]:
    data = study.model_dump(mode="json")
    for name in study.tune_stages:
        data["stages"][name]["tune"]["num_samples"] = None
    return data


class _SearchEndedError(Exception):
    """A search has ended without a result; what comes after it cannot run."""

    def __init__(self, state: StudyState) -> None:
        super().__init__(state)
        self.state = state


@dataclass(slots=True)
class _Session:
    study: StudySpec
    sites: tuple[SiteSpec, ...]
    run_directory: RunDirectory
    search_path: Sequence[str]
    view: View
    searches: list[Search] = field(default_factory=list)
    one_search: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)
    interrupted: bool = False

    def run(self) -> RunResult:
        """Run every stage; the first failure ends the run once what is running has ended."""
        done: dict[str, StageResult] = {}
        narrowest = min((t.tune.scheduler.num_workers for t in self.study.tune_stages.values()), default=1)
        check_sites(self.study, [SiteName(site.name) for site in self.sites])
        places = Places(self.sites, self.run_directory, self.search_path, narrowest=narrowest)
        with _signals(self._interrupt), places:
            try:
                self._run_graph(done, places)
                state = StudyState.DONE
            except _SearchEndedError as ended:
                state = ended.state
            except StageFailedError:
                if not self.interrupted:
                    raise
                state = StudyState.INTERRUPTED
        summary = self.searches[-1].summary() if self.searches else {}
        return RunResult(state, self.run_directory.path, summary, {k: v.value for k, v in done.items()})

    def _run_graph(self, done: dict[str, StageResult], places: Places) -> None:
        """Run every stage as soon as what it needs is done."""
        graph = stage_graph(self.study)
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

    def _run_stage(self, name: str, done: Mapping[str, StageResult], places: Places) -> StageResult:
        stage = self.study.stages[name]
        sites = tuple(places.sites)
        at = () if isinstance(stage, TuneStage) else sites_of(stage, done, sites)
        calls = calls_of(stage, done, self.search_path, at=at, sites=sites)
        folder = self.run_directory.stages / name
        kept = {call.name: _kept(folder, call) for call in calls}
        self.view.stage_started(name, len(calls))
        begin = time.perf_counter()
        if isinstance(stage, TuneStage):
            values = [self._search(name, stage, calls[0], _known(stage, done), places)]
        else:
            values = self._call_all(name, stage, calls, kept, places)
        reused = not isinstance(stage, TuneStage) and all(k is not None for k in kept.values())
        self.view.stage_ended(name, time.perf_counter() - begin, reused=reused)
        return result_of(stage, calls, values, at)

    def _search(
        self, name: str, stage: TuneStage, call: Call, known: list[dict[str, Any]], places: Places
    ) -> Any:
        alone = len(self.study.tune_stages) == 1
        directory = self.run_directory if alone else RunDirectory(self.run_directory.path / name)
        self._refuse_other_inputs(name, call, directory)
        with self.one_search:  # a site's slots belong to one ledger at a time
            if self.ending.is_set():
                raise StageFailedError(name, "interrupted")
            sites = places.named(stage.site)
            search = Search(
                self.study,
                name,
                stage.tune,
                sites,
                places.runner(list(sites)),
                directory,
                self.run_directory,
                call.arguments,
                known,
            )
            self.searches.append(search)
            found = search.run(self.view)
        if search.state is not StudyState.DONE:
            raise _SearchEndedError(search.state)
        return found

    def _refuse_other_inputs(self, name: str, call: Call, directory: RunDirectory) -> None:
        """Keep a search from going on with other data than it was begun with."""
        folder = self.run_directory.stages / name
        if directory.journal.exists() and _kept(folder, call) is None:
            found = f"the search {name!r} was begun with other inputs: a stage before it has changed"
            raise RunDirectoryError(str(directory.path), found, "Run the study with another --dir.")
        _keep(folder, call, {"result": None})

    def _call_all(
        self,
        name: str,
        stage: Stage,
        calls: Sequence[Call],
        kept: Mapping[str, dict[str, Any] | None],
        places: Places,
    ) -> list[Any]:
        folder = self.run_directory.stages / name
        futures = {call.name: places.submit(name, stage, call) for call in calls if kept[call.name] is None}
        values = []
        for call in calls:
            found = kept[call.name]
            if found is None:
                found = outcome(name, futures[call.name], self.ending)
                _keep(folder, call, found)
            values.append(found["result"])
        return values


def _known(stage: TuneStage, done: Mapping[str, StageResult]) -> list[dict[str, Any]]:
    """Return the configurations that a search begins with: the best one of another search."""
    warm = stage.tune.searcher.warm_start
    return [done[warm].value["config"]] if warm else []


def _kept(folder: Path, call: Call) -> dict[str, Any] | None:
    """Return the result of a call that was made before, if it still stands."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{call.name}.json").read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("key") == call.key else None


def _keep(folder: Path, call: Call, found: Mapping[str, Any]) -> None:
    file = folder / f"{call.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps({"key": call.key, **found}))


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
