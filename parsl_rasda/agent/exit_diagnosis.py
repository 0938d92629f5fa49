"""What an attempt left behind when it ended: the ranks' report, its epochs, the last lines of its log.

Used on the pilot when a launch ends, and by the controller when a pilot is gone and only the shared
file system is left to ask. What follows from it is decided by `exits.classify_exit`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from parsl_rasda.exits import EndedBy, ExitObservations, classify_exit
from parsl_rasda.protocol import STARTED, JobResult, JobSpec, read_report, report_of_epochs
from parsl_rasda.storage import unwritable
from parsl_rasda.types import Fault, Phase

_LOG_TAIL_BYTES = 4096


def conclude(
    directory: Path, order: JobSpec, seen: ExitObservations, said: JobResult | None = None
) -> JobResult:
    """Return the report of an attempt that has ended: the ranks' own, or one made of the epochs they left.

    Args:
        directory: Of the attempt.
        order: Of the attempt.
        seen: What was seen of its end.
        said: The report that a rank sent; it counts if none could be written.
    """
    own = read_report(directory, order.job) or said
    if own is not None:
        return amend(own, replace(seen, missing_input=_missing_input(order)))
    found = classify_exit(seen)
    return report_of_epochs(
        directory, order, found.outcome, found.cause, phase=found.phase, fault=seen.fault, blame=found.blame
    )


def amend(own: JobResult, seen: ExitObservations) -> JobResult:
    """Return the ranks' own report with the outcome and the cause that it has by what else was seen."""
    found = classify_exit(replace(seen, report=own))
    return replace(own, outcome=found.outcome, cause=found.cause, blame=found.blame, phase=found.phase)


def observe_launch(returncode: int, log: Path, phase: Phase | None = None) -> ExitObservations:
    """Return what is seen of a launch that ended by itself, or because nothing could be written.

    Args:
        returncode: As in `subprocess`: negative for a death by signal.
        log: The attempt's log file.
        phase: How far its ranks got, as far as anybody heard.
    """
    if full := unwritable(log.parent):
        return ExitObservations(EndedBy.STORAGE, str(full), phase=phase, fault=Fault.STORAGE)
    if phase in {None, Phase.NO_RANK}:  # a rank that has no channel leaves a file
        phase = None if (log.parent / STARTED).exists() else Phase.NO_RANK
    return ExitObservations(EndedBy.LAUNCH_EXIT, returncode=returncode, log_tail=_tail(log), phase=phase)


def _missing_input(order: JobSpec) -> str:
    """Return a path that a job needs and that is not here, or nothing."""
    return next((path for _, path in order.paths if not Path(path).exists()), "")


def _tail(log: Path) -> tuple[str, ...]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace").replace("\0", "")
            return tuple(line.strip() for line in text.splitlines())
    except OSError:
        return ()
