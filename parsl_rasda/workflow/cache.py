"""Results of calls stand until their code, their arguments or their inputs change; the others are called."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parsl_rasda.errors import RasdaError, RunDirectoryError, SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import keep_result, kept_call, kept_names, kept_result
from parsl_rasda.study import Stage
from parsl_rasda.types import SiteName, StudyState
from parsl_rasda.workflow.dag import Call, under_kept_names
from parsl_rasda.workflow.site_pool import SitePool, call_result
from parsl_rasda.workflow.stage_log import StageEndedError, StageLog

_POLL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedStage:
    """The calls of one stage.

    Attributes:
        ending: Set when the run is to end.
    """

    name: str
    stage: Stage
    log: StageLog
    pool: SitePool
    ending: threading.Event

    def run(self, calls: Sequence[Call]) -> tuple[bool, list[Any]]:
        """Return whether nothing had to be called, and what each call has returned."""
        folder = self.log.folder(self.name)
        calls = under_kept_names(calls, kept_names(folder))
        found = {call.name: kept_result(folder, call.name, call.key) for call in calls}
        missing = [call for call in calls if found[call.name] is None]
        self.log.begin(self.name, calls)
        queued: Sequence[Call] = missing
        running: dict[Future[dict[str, Any]], Call] = {}
        while queued or running:
            queued = self._submit(queued, running)
            ended, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            failures: list[RasdaError] = []
            for future in ended:  # results are kept as they come, also beside a failure
                call = running.pop(future)
                try:
                    found[call.name] = result = call_result(self.name, future)
                except StageFailedError as error:
                    where = f"call {call.name}: " if len(calls) > 1 else ""
                    failures.append(StageFailedError(self.name, f"{where}{error.cause}"))
                except SiteUnavailableError as error:
                    failures.append(error)
                else:
                    keep_result(folder, call.name, call.key, result)
            if failures:
                raise failures[0]
            if (queued or running) and self.ending.is_set():
                raise StageEndedError(StudyState.INTERRUPTED)
            if not running and queued:  # other stages are at work on its sites
                self.ending.wait(_POLL_S)
        return not missing, [(found[call.name] or {})["result"] for call in calls]

    def _submit(self, queued: Sequence[Call], running: dict[Future[dict[str, Any]], Call]) -> Sequence[Call]:
        """Start the calls that find room, and return those that do not; one full site delays no other."""
        left, full = [], set[SiteName | None]()
        for call in queued:
            future = None if call.site in full else self.pool.submit(self.name, self.stage, call)
            if future is None:
                full.add(call.site)
                left.append(call)
            else:
                running[future] = call
        return left


def keep_search(folder: Path, name: str, call: Call, directory: RunDirectory, *, may_restart: bool) -> None:
    """Let a search go on that still stands, and begin anew where it does not.

    Args:
        folder: Of its stage.
        name: Of its stage.
        call: What it is called with now.
        directory: Where its journal is.
        may_restart: Whether it may begin anew.

    Raises:
        RunDirectoryError: If it was begun with other inputs, and must not begin anew.
    """
    kept = kept_call(folder, call.name) if directory.journal.exists() else None
    if kept is not None and kept["key"] != call.key:
        if may_restart:
            aside = directory.set_aside()
            logger.warning("search %s begins anew: what it depends on has changed; before=%s", name, aside)
        elif kept.get("inputs") != call.inputs:
            found = f"the search {name!r} was begun with other inputs: a stage before it has changed"
            advice = f"`parsl-rasda run` with --dir {directory.path} begins it anew; what it has stays."
            raise RunDirectoryError(str(directory.path), found, advice)
    keep_result(folder, call.name, call.key, {"result": None, "inputs": call.inputs})
