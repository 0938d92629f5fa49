"""What the run directory says of each stage while it runs: where it stands, and why it has no result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parsl_rasda.errors import RasdaError, RunDirectoryError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import StageRecord, forget_record, read_record, write_record
from parsl_rasda.plain_text import cleaned, words_of
from parsl_rasda.types import StageState, StudyState
from parsl_rasda.workflow.dag import Call


class StageEndedError(Exception):
    """A stage has ended without a result, and nothing was raised; what comes after it cannot run."""

    def __init__(self, state: StudyState, cause: str = "") -> None:
        """Say how it ended."""
        super().__init__(state, cause)
        self.state, self.cause = state, cause


@dataclass(frozen=True, slots=True)
class StageLog:
    """Writes the records of a run's stages, and reports its progress."""

    run_directory: RunDirectory
    progress: ProgressReporter

    def folder(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.run_directory.stages / name

    def forget(self, names: Collection[str]) -> None:
        """Forget where stages stood: they wait to run again."""
        for name in names:
            forget_record(self.folder(name))

    def begin(self, name: str, calls: Sequence[Call]) -> None:
        """Record that a stage runs."""
        keys = {call.name: call.key for call in calls}
        self._write(name, StageRecord(StageState.RUNNING, time.time(), keys))
        self.progress.stage_started(name, len(calls))

    def done(self, name: str, result: Any, seconds: float, *, reused: bool) -> None:
        """Record what a stage returned, in JSON, after so long [s]."""
        before = read_record(self.folder(name))
        self._write(name, replace(before, state=StageState.DONE, at=time.time(), result=result))
        self.progress.stage_ended(name, seconds, reused=reused)

    def failed(self, name: str, error: Exception, *, interrupted: bool) -> None:
        """Record why a stage has no result; one that was only told to leave has not failed."""
        before = read_record(self.folder(name))
        state, cause, is_curable = _ending(error)
        cause = cleaned(cause)
        if interrupted or state is StageState.INTERRUPTED:
            if before.state is StageState.RUNNING:
                self._write(name, replace(before, state=StageState.INTERRUPTED, at=time.time()))
            return
        self._write(name, replace(before, state=state, at=time.time(), cause=cause, is_curable=is_curable))
        self.progress.stage_failed(name, cause)

    def _write(self, name: str, record: StageRecord) -> None:
        with contextlib.suppress(RunDirectoryError):  # another controller has taken over
            self.run_directory.verify()
            write_record(self.folder(name), record)


def _ending(error: Exception) -> tuple[StageState, str, bool]:
    """Return where an error leaves its stage, why in words, and whether `resume` may help."""
    match error:
        case StageEndedError():
            return StageState(error.state.value), error.cause, error.state is not StudyState.FAILED
        case SiteUnavailableError():
            return StageState.NO_SITE, str(error), True
        case StageFailedError():
            return StageState.FAILED, error.cause, True
        case RasdaError():
            return StageState.FAILED, str(error), False
        case _:
            return StageState.FAILED, words_of(error), True
