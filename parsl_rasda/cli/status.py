"""`parsl-rasda status`: the state of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parsl_rasda.cli.options import AsJson, RunFolder
from parsl_rasda.cli.output import print_json, print_result

if TYPE_CHECKING:
    from parsl_rasda.reporting.overview import JobWords
    from parsl_rasda.reporting.runs import Run

ROWS = 40  # trials listed


def status(directory: RunFolder, as_json: AsJson = False) -> None:
    """Show the state of a run and of each stage, with the reason of each failure.

    Numbers are those of now if the run is active, else those of its end.
    """
    from parsl_rasda.reporting.overview import run_view
    from parsl_rasda.reporting.runs import read_run

    run = read_run(directory)
    if as_json:
        print_json(run.document())
    else:
        print_result(run_view(run, ROWS, controllers_job(run)))


def queued_controller(run: Run) -> str:
    """Return where the job of a run's controller stands, in words; empty if none is in a queue."""
    from parsl_rasda.backends.parsl.controller_job import last_job
    from parsl_rasda.orchestration.run_directory import RunDirectory
    from parsl_rasda.reporting.format import queue_words

    job = last_job(RunDirectory(run.directory))
    if job is None or (found := job.in_queue) is None:
        return ""
    return queue_words(found.job, found.state, found.reason, found.starts_at, found.obstacle)


def controllers_job(run: Run) -> JobWords | None:
    """Return where the job of a run's controller stands; None unless it was submitted."""
    from parsl_rasda.backends.parsl.controller_job import last_job
    from parsl_rasda.orchestration.run_directory import RunDirectory
    from parsl_rasda.reporting.overview import JobWords

    job = last_job(RunDirectory(run.directory))
    if job is None:
        return None
    if run.controller:
        return JobWords(f"job {job.job}; what it says is in {job.log}", may_be_queued=True)
    if stands := queued_controller(run):
        return JobWords(stands, may_be_queued=True)
    is_known = job.can_be_asked_for
    found = "is not in the queue" if is_known else "cannot be asked for here"
    return JobWords(f"job {job.job} {found}; what it said is in {job.log}", may_be_queued=not is_known)
