"""The sites of a run as places where stages and searches happen."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias, assert_never

from parsl_rasda.agent.job import Named
from parsl_rasda.backends.globus.backend import GlobusBackend
from parsl_rasda.backends.multi_site import MultiSiteBackend
from parsl_rasda.backends.parsl.backend import ParslBackend
from parsl_rasda.errors import (
    InvalidSettingError,
    RasdaError,
    RunDirectoryError,
    SiteUnavailableError,
    StageFailedError,
)
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import CommandStage, ParslSiteSpec, PythonStage, SiteSpec, Stage, TuneStage
from parsl_rasda.study.files import local_path
from parsl_rasda.types import SiteName
from parsl_rasda.workflow import tasks
from parsl_rasda.workflow.dag import Call

_StageCall: TypeAlias = tuple[str, Future[dict[str, Any]]]  # a stage's name, and its call

_PLAIN_ASCII = re.compile(r"[A-Za-z0-9_./+@%:,=~#-]")


class Places:
    """One runner a site, open while the block lasts; pilots are kept from one stage to the next.

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
        study: str = "",
    ) -> None:
        """Prepare; nothing is started before the first stage or search asks for it.

        Args:
            sites: Where things may happen; the first one is where stages run that name none.
            directory: The run directory.
            search_path: Folders of the study's own modules.
            narrowest: Slots of the narrowest job of any search.
            stages_at_once: Calls of stages that run at a time on a site, of all stages together.
            study: Name of the study.

        Raises:
            RunDirectoryError: If Parsl cannot work in the run directory or in a site's `work_dir`.
        """
        self.sites: Mapping[SiteName, SiteSpec] = {SiteName(s.name): s for s in sites}
        self._search_path, self._stages = tuple(search_path), directory.stages
        self._files = directory.path / "files"  # that Parsl stages for them
        self._runners = {
            name: _runner(site, directory, search_path, narrowest, stages_at_once, study)
            for name, site in self.sites.items()
        }
        self._at_once, self._at_work = stages_at_once, {name: list[_StageCall]() for name in self.sites}
        self._one_at_a_time = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:  # those before one that cannot be opened are closed again
            for runner in self._runners.values():
                opened.enter_context(runner.hold())
            self._stack = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def runner(self, sites: Sequence[SiteName]) -> MultiSiteBackend:
        """Return the runner of some of the sites."""
        return MultiSiteBackend({name: self._runners[name] for name in sites})

    def submit(self, name: str, stage: Stage, call: Call) -> Future[dict[str, Any]] | None:
        """Start one call of a stage on its site; None if its stage, or the site, is at work enough."""
        if isinstance(stage, TuneStage):
            raise InvalidSettingError(f"stages.{name}", "tune", "a python or a command stage")
        site = call.site or next(iter(self.sites))
        with self._one_at_a_time:
            at_work = [(n, future) for n, future in self._at_work[site] if not future.done()]
            self._at_work[site] = at_work
            if len(at_work) >= self._at_once or sum(n == name for n, _ in at_work) >= stage.resources.at_once:
                return None
            future = self._start(site, name, stage, call)
            at_work.append((name, future))
        return future

    def _start(
        self, site: SiteName, name: str, stage: PythonStage | CommandStage, call: Call
    ) -> Future[dict[str, Any]]:
        runner = self._runners[site]
        folder, submit = self._stages, runner.submit_stage
        arguments = dict(call.arguments)
        if isinstance(runner, GlobusBackend):  # the next controller may find it there
            folder, submit = runner.stages, partial(runner.submit_stage, key=call.key)
            arguments |= _paths_there(name, call)
        elif call.files:
            from parsl_rasda.backends.parsl import staging

            staged = staging.files_in(self._files / name / call.name, call.files)
            submit = partial(runner.submit_stage, files=tuple(call.files), inputs=staged)
        folder = folder / name / call.name
        label = f"stage_{name}_{call.name.replace('/', '_')}"
        match stage:
            case PythonStage():
                return submit(
                    Named(label, tasks.call_python),
                    name,
                    stage.python,
                    arguments,
                    str(folder),
                    self._search_path,
                )
            case CommandStage():
                return submit(
                    Named(label, tasks.call_command),
                    name,
                    tuple(stage.command),
                    arguments,
                    str(folder),
                )
            case _:
                assert_never(stage)


def outcome(name: str, future: Future[dict[str, Any]]) -> dict[str, Any]:
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


def _paths_there(name: str, call: Call) -> dict[str, str]:
    """Return the files of a call on a Globus site, which no executor of Parsl's here reaches."""
    paths = {argument: local_path(url) for argument, url in call.files.items()}
    for argument, path in paths.items():
        if path is None:
            cause = f"{call.files[argument]}: to a Globus site no files are staged; name one that is there"
            raise StageFailedError(name, f"{argument}: {cause} (file:///...)")
    return {argument: path for argument, path in paths.items() if path is not None}


def check_folder(folder: Path) -> None:
    """Refuse a folder that Parsl's command lines, which quote nothing, would tear apart: pilots never come.

    Raises:
        RunDirectoryError: If its path, links followed, has a blank or a character special to shells.
    """
    path = str(folder.resolve())
    for character in path:
        if not (_PLAIN_ASCII.match(character) or (not character.isascii() and character.isalpha())):
            found = f"has {character!r} in its path, with which Parsl starts no pilot"
            raise RunDirectoryError(
                path, found, "Choose one of letters, digits and _ . / + @ % : , = ~ # - only."
            )


def _runner(
    site: SiteSpec,
    directory: RunDirectory,
    search_path: Sequence[str],
    narrowest: int,
    stages_at_once: int,
    study: str,
) -> ParslBackend | GlobusBackend:
    folder, paths = directory.path / "runners" / site.name, tuple(Path(p) for p in search_path)
    if isinstance(site, ParslSiteSpec):
        check_folder(directory.path)
        if site.work_dir:
            check_folder(Path(site.work_dir))
        return ParslBackend(
            site, folder, narrowest=narrowest, stages_at_once=stages_at_once, python_path=paths
        )
    return GlobusBackend(site, folder, narrowest=narrowest, python_path=paths, study=study)
