"""Hands the controller of a study to a batch system: what `submit` and `cancel` do."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from parsl_rasda.backends.parsl import controller_job
from parsl_rasda.backends.parsl.controller_job import ControllerJob
from parsl_rasda.errors import InvalidSettingError, RunDirectoryError
from parsl_rasda.orchestration.admission import AdmittedStudy
from parsl_rasda.orchestration.replay import load_run, load_run_study, save_run, search_path_of
from parsl_rasda.orchestration.run_directory import RunDirectory, check_folder
from parsl_rasda.study import SiteSpec
from parsl_rasda.study.controller_sites import controller_site, site_inside
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.workflow.entry import refuse_other_search
from parsl_rasda.workflow.pinned_code import search_path_in

_PATIENCE_S = 600.0  # a controller leaves when its trials have saved, or a minute after they should have
_POLL_S = 0.5
_ENDS_BY_ITSELF = {"RUNNING", "COMPLETING", "EXITING"}


@dataclass(frozen=True, slots=True)
class CancelledRun:
    """What `cancel` has ended.

    Attributes:
        was_active: There was anything to end.
        unasked: The command that ends the last job, if its batch system could not be asked from here.
    """

    was_active: bool
    unasked: str = ""


def submit_study(
    admitted: AdmittedStudy, directory: Path, *, search_path: Sequence[Path], inside: bool
) -> ControllerJob:
    """Prepare a run directory and queue the job of its controller, which is asked of the first site.

    Args:
        admitted: What to run, and where.
        directory: Its run directory; created.
        search_path: Folders where the study's functions are, before Python's own path.
        inside: The controller runs on the first node of that site's one pilot.

    Raises:
        InvalidSettingError: If the first site has no batch system that we know.
        RunDirectoryError: If the directory holds another search, or is run or queued already.
        SiteUnavailableError: In the batch system's own words, if it refuses.
    """
    first = admitted.sites[0]
    if not isinstance(first, ParslSiteSpec):
        raise InvalidSettingError("--site", first.name, "first, a site with a `provider`")
    asked = controller_site(first, inside=inside)
    sites: tuple[SiteSpec, ...] = admitted.sites
    if inside:
        sites = (site_inside(first), *sites[1:])
    run = RunDirectory(directory.resolve())
    check_folder(run.path)
    refuse_other_search(run, admitted.study)
    _refuse_queued(run)
    with run.controlled():
        save_run(run, admitted.study, sites, search_path)
        search_path_in(run, admitted.study, search_path_of(run))
        controller_job.prepare(run, asked)
    return _queue(run, sites, inside=inside)


def submit_again(directory: Path, *, is_next: bool = False) -> ControllerJob:
    """Queue the job of a controller that goes on with a run, as it was asked for the first time.

    Args:
        directory: The run directory of a study that was submitted.
        is_next: The job before this one asks for it, and is about to end.

    Raises:
        RunDirectoryError: If it was never submitted, or is run or queued already.
        SiteUnavailableError: In the batch system's own words, if it refuses.
    """
    run = RunDirectory(directory.resolve())
    sites = load_run(run)[1]
    if not is_next:
        _refuse_queued(run)
    before = controller_job.last_job(run)
    return _queue(run, sites, inside=before is not None and before.is_inside)


def cancel_run(directory: Path, say: Callable[[str], None] = lambda _: None) -> CancelledRun:
    """End the controller of a run, wherever it is, and take its job from the queue.

    Trials save and leave. The run can be resumed.

    Args:
        directory: The run's.
        say: Called with a line where that may take a while.

    Raises:
        RunDirectoryError: If it is not the directory of a run, or the controller does not end.
    """
    run = RunDirectory(directory.resolve())
    load_run_study(run)  # its sites may need variables that are not set here
    left, was_run = None, run.controller is not None
    if was_run:
        run.tell_to_end()
        say("its controller is told to save and to end")
        left = _await_end(run, _PATIENCE_S)
    job = controller_job.last_job(run)  # the controller may have queued one until now
    queued = None if job is None else job.in_queue
    if left is not None and queued is None:
        raise RunDirectoryError(str(run.path), f"is still being run by {left}", "Kill that process.")
    if job is None:
        return CancelledRun(was_run)
    # A job whose controller has just left is about to end: there pilots are given back.
    if queued is not None and not (was_run and left is None and queued.state in _ENDS_BY_ITSELF):
        job.cancel()
    if queued is None and not job.can_be_asked_for:
        job.cancel()
        return CancelledRun(was_run, shlex.join(job.end_command))
    return CancelledRun(was_run or queued is not None)


def _await_end(run: RunDirectory, patience_s: float) -> str | None:
    """Return None when nobody runs the study any more, or who still does after so long [s]."""
    give_up = time.monotonic() + patience_s
    while (left := run.controller) is not None and time.monotonic() < give_up:
        time.sleep(_POLL_S)
    return left


def _queue(run: RunDirectory, sites: Sequence[SiteSpec], *, inside: bool) -> ControllerJob:
    margin_s = max(site.checkpoint_margin_s for site in sites)
    return controller_job.queue_job(run, is_inside=inside, margin_s=margin_s)


def _refuse_queued(run: RunDirectory) -> None:
    found, advice = "", "Wait for it, or end it: `parsl-rasda cancel`."
    if (controller := run.controller) is not None:
        found = f"is being run by {controller}"
    elif (job := controller_job.last_job(run)) is not None and (queued := job.in_queue) is not None:
        found = f"has a controller in the queue, job {queued.job} ({queued.state})"
    if found:
        raise RunDirectoryError(str(run.path), found, advice)
