"""The sites of a run, where its stages and searches happen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeAlias, assert_never

from parsl_rasda.backends.multi_site import MultiSiteBackend
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.errors import InvalidSettingError, RasdaError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.backend import Backend, BackendContext, StageFunction, StageTask
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import CommandStage, PythonStage, SiteSpec, Stage, TuneStage
from parsl_rasda.types import SiteName
from parsl_rasda.workflow import tasks
from parsl_rasda.workflow.dag import Call

_RunningCall: TypeAlias = tuple[str, Future[dict[str, Any]]]  # a stage's name, and its call


class SitePool:
    """One backend a site, open while the block lasts; pilots are kept from one stage to the next.

    A pilot has a worker for each job that fits and for `stages_at_once` calls of stages. No more calls
    are let in than that: one too many would take the worker of a job whose slots are held for it.
    """

    def __init__(
        self,
        sites: Sequence[SiteSpec],
        directory: RunDirectory,
        search_path: Sequence[str],
        *,
        narrowest: int,
        stages_at_once: int,
        forks_ranks: bool = False,
        study: str = "",
        build: Callable[[SiteSpec, BackendContext], Backend] = build_backend,
    ) -> None:
        """Prepare; nothing is started before the first stage or search asks for it.

        Args:
            sites: Where things may happen; the first one is where stages run that name none.
            directory: The run directory.
            search_path: Folders of the study's own modules.
            narrowest: Slots of the narrowest job of any search.
            stages_at_once: Calls of stages that run at a time on a site, of all stages together.
            forks_ranks: A search trains Python functions, whose ranks are forked from a process with torch.
            study: Name of the study.
            build: Returns the backend of a site.

        Raises:
            RunDirectoryError: If a backend cannot work in the run directory.
        """
        self.sites: Mapping[SiteName, SiteSpec] = {SiteName(s.name): s for s in sites}
        self._search_path = tuple(search_path)
        self._backends = {
            name: build(
                site,
                BackendContext(
                    directory.path / "runners" / name,
                    directory.path,
                    study=study,
                    narrowest=narrowest,
                    stages_at_once=stages_at_once,
                    forks_ranks=forks_ranks,
                    python_path=tuple(Path(path) for path in search_path),
                ),
            )
            for name, site in self.sites.items()
        }
        self._at_once, self._running = stages_at_once, {name: list[_RunningCall]() for name in self.sites}
        self._submitting = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.backend(tuple(self.sites)).hold())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def backend(self, sites: Sequence[SiteName]) -> Backend:
        """Return the backend of some of the sites."""
        return MultiSiteBackend({name: self._backends[name] for name in sites})

    def submit(self, name: str, stage: Stage, call: Call) -> Future[dict[str, Any]] | None:
        """Start one call of a stage on its site; None if its stage, or the site, runs enough of them."""
        if isinstance(stage, TuneStage):
            raise InvalidSettingError(f"stages.{name}", "tune", "a python or a command stage")
        site = call.site or next(iter(self.sites))
        with self._submitting:
            running = [(n, future) for n, future in self._running[site] if not future.done()]
            self._running[site] = running
            if len(running) >= self._at_once or sum(n == name for n, _ in running) >= stage.resources.at_once:
                return None
            future = self._backends[site].submit_stage(self._task(site, name, stage, call))
            running.append((name, future))
        return future

    def _task(self, site: SiteName, name: str, stage: PythonStage | CommandStage, call: Call) -> StageTask:
        function: StageFunction
        target: str | tuple[str, ...]
        match stage:
            case PythonStage():
                function, target = tasks.call_python, stage.python
            case CommandStage():
                function, target = tasks.call_command, tuple(stage.command)
            case _:
                assert_never(stage)
        return StageTask(
            site,
            name,
            call.name,
            function,
            target,
            call.arguments,
            call.files,
            self._search_path,
            call.key,
        )


def call_result(name: str, future: Future[dict[str, Any]]) -> dict[str, Any]:
    """Return what a call of a stage has returned.

    Raises:
        StageFailedError: If it failed.
        SiteUnavailableError: If its site was lost.
    """
    try:
        return future.result()
    except (StageFailedError, SiteUnavailableError):
        raise
    except RasdaError as error:
        raise StageFailedError(name, str(error)) from error
    except Exception as error:
        raise StageFailedError(name, f"{type(error).__name__}: {error}") from error
