"""A search in somebody's own Parsl program: in a thread of its own, from its inputs to its best trial.

It waits for its turn on the executors it uses, and leaves when the program does: its trials save,
its run directory is free again, and the same call of the next program goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from parsl_rasda.backends.multi_site import MultiSiteBackend
from parsl_rasda.backends.registry import EmbeddedBackend, build_embedded_backend
from parsl_rasda.errors import InvalidSettingError, RasdaError, StageFailedError
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.orchestration.replay import save_run
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import keep_result
from parsl_rasda.study import ExecutorSite, StudySpec
from parsl_rasda.types import JSON, SiteName, StudyState
from parsl_rasda.workflow.dag import calls_of
from parsl_rasda.workflow.entry import refuse_other_search
from parsl_rasda.workflow.executor_queue import Place
from parsl_rasda.workflow.pinned_code import search_path_in
from parsl_rasda.workflow.program_functions import FOLDER, write
from parsl_rasda.workflow.search_run import Search

_POLL_S = 0.2
_LEAVING_S = 35.0  # what a job may take to save, and some
_CANCELLED_S = 3.0  # where Parsl cancels the pilots meanwhile
_LEFT = "the program has ended Parsl; tune with the same directory goes on from here"


@dataclass(frozen=True, slots=True)
class Embedded:
    """One search of a program.

    Attributes:
        kernel: The program's ``parsl.DataFlowKernel`` (Parsl is untyped); used, never ended.
        study: A study of this one stage.
        search_path: Folders of the study's own modules.
        sites: Its executors, as sites.
        run: Its run directory.
        place: Its place in the queue for these executors.
        program: Files that hold a function of the program itself, if that is what is trained.
    """

    kernel: Any
    study: StudySpec
    search_path: Sequence[Path]
    sites: Sequence[ExecutorSite]
    run: RunDirectory
    place: Place
    progress: ProgressReporter
    program: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its stage."""
        return next(iter(self.study.tune_stages))

    def begin(self, inputs: Mapping[str, Any]) -> Future[Any]:
        """Start it in a thread of its own, and return the future of its best trial."""
        future: Future[Any] = Future()

        def work() -> None:
            try:
                best = self._search(inputs)
            except RasdaError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001  it becomes the exception of the app's future
                failure = StageFailedError(self.name, f"{type(error).__name__}: {error}")
                failure.__cause__ = error
                future.set_exception(failure)
            else:
                future.set_result(best)

        thread = threading.Thread(target=work, name=f"rasda-{self.study.name}", daemon=True)
        _threads().add(thread)
        thread.start()
        return future

    def _search(self, inputs: Mapping[str, Any]) -> Any:
        study = self._with(inputs)
        with self.place.turn(self._raise_if_over), self.run.controlled():
            refuse_other_search(self.run, study, may_grow=True)
            if self.program:
                write(self.program, self.run.path / FOLDER)
            save_run(self.run, study, [site.for_resume() for site in self.sites], self.search_path)
            paths = search_path_in(self.run, study, [*map(str, self.search_path)])
            search, backends = self._build(study, paths)
            with self._watched(search, backends):
                best = search.run(self.progress)
        if search.state is StudyState.INTERRUPTED and self._is_over:
            raise StageFailedError(self.name, _LEFT)
        if search.state is not StudyState.DONE:
            raise StageFailedError(self.name, search.cause)
        return best

    def _with(self, inputs: Mapping[str, Any]) -> StudySpec:
        """Return the study as its run directory keeps it: with the inputs that have arrived."""
        stage = self.study.tune_stages[self.name]
        given = {**stage.with_, **{key: _plain(self.name, key, value) for key, value in inputs.items()}}
        return self.study.model_copy(
            update={"stages": {self.name: stage.model_copy(update={"with_": given})}}
        )

    def _build(self, study: StudySpec, paths: Sequence[str]) -> tuple[Search, Sequence[EmbeddedBackend]]:
        stage = study.tune_stages[self.name]
        sites = {SiteName(site.name): site for site in self.sites}
        (call,) = calls_of(stage, {}, paths, at=(), sites=sites)
        kept = {"result": None, "inputs": call.inputs}
        keep_result(self.run.stages / self.name, call.name, call.key, kept)  # for `resume`
        folder = self.run.path / "runners"
        backends = {
            name: build_embedded_backend(site, BackendContext(folder / name, self.run.path), self.kernel)
            for name, site in sites.items()
        }
        backend = MultiSiteBackend(backends)
        search = Search(
            study,
            self.name,
            stage.tune,
            sites,
            backend,
            self.run,
            self.run,
            call.arguments,
            search_path=paths,
        )
        return search, tuple(backends.values())

    # ------------------------------------------------------------------------- the program's end

    @property
    def _is_over(self) -> bool:
        return bool(self.kernel.cleanup_called) or _exiting.is_set()

    def _raise_if_over(self) -> None:
        if self._is_over:
            raise StageFailedError(self.name, _LEFT)

    @contextmanager
    def _watched(self, search: Search, backends: Sequence[EmbeddedBackend]) -> Iterator[None]:
        """Let the search leave when the program ends Parsl, or itself; nothing else would notice."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_POLL_S):
                search.take_requests()
                if self._is_over:
                    search.interrupt()
                    if not done.wait(self._patience_s):
                        for backend in backends:
                            backend.lose("the program has ended Parsl")
                    return

        watcher = threading.Thread(target=watch, name=f"rasda-{self.study.name}-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    @property
    def _patience_s(self) -> float:
        """How long jobs are given to leave: a pool of threads is waited for, pilots are cancelled."""
        used = [self.kernel.executors[site.name] for site in self.sites]
        has_pilots = any(getattr(executor, "provider", None) is not None for executor in used)
        return _CANCELLED_S if has_pilots else _LEAVING_S


def _plain(stage: str, key: str, value: Any) -> JSON:
    """Return an input as JSON; a File becomes its path."""
    if hasattr(value, "filepath"):
        return str(value.filepath)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(stage, key, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(stage, key, v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    allowed = "numbers, strings, lists, mappings, paths and Parsl Files: ranks are other processes"
    raise InvalidSettingError(f"input {key} of stage {stage}", type(value).__name__, allowed)


_exiting = threading.Event()


@cache
def _threads() -> WeakSet[threading.Thread]:
    """Return the threads of all searches; at exit they are interrupted and waited for.

    Python's own hook for it, not `atexit`: that runs when pools of threads take no more work, which
    a search needs to end well.
    """
    threads: WeakSet[threading.Thread] = WeakSet()

    def leave() -> None:
        _exiting.set()
        for thread in tuple(threads):
            thread.join()

    threading._register_atexit(leave)  # type: ignore[attr-defined]  # as concurrent.futures does
    return threads
