"""Which checkpoints of an attempt, and of the attempts before it, are not needed any more."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from parsl_rasda.checkpoint_files import number_of, remove_attempt
from parsl_rasda.protocol import KNOWN, EpochReport, JobSpec
from parsl_rasda.types import Mode

KEPT = 2


def known_epochs(directory: Path) -> int | None:
    """Return how many epochs the controller is known to have received; None if it receives them at once."""
    try:
        return int((directory / KNOWN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def superseded(places: Sequence[str], reports: Sequence[EpochReport], known: int | None) -> int:
    """Return how many of an attempt's checkpoints may be removed, counted from the oldest.

    The newest ones stay. An attempt that has lost its controller trains on, while another attempt takes its
    place. That other one resumes from the newest checkpoint named in the first ``known`` epochs, or, if that
    is damaged, from the one named before; these and all later ones stay, too.

    Args:
        places: Paths or URLs of the checkpoints, oldest first.
        reports: What the attempt has reported.
        known: The value of `known_epochs`.
    """
    old = max(0, len(places) - KEPT)
    received = [r for r in reports if known is None or r.epoch <= known]
    named = dict.fromkeys(r.checkpoint.path for r in received if r.checkpoint)
    needed = [path for path in [*named][-2:] if path in places]
    if needed:  # may be older than those kept, because checkpoints are written in the background
        return min(old, places.index(needed[0]))
    return old if known is None else 0


def spared(
    spec: JobSpec, reports: Sequence[EpochReport], whole: Collection[int], known: int | None
) -> set[int]:
    """Return the epochs whose checkpoints stay, though they are superseded: the best one of the trial.

    Args:
        spec: Of the attempt.
        reports: What it has reported.
        whole: Epochs that it has made a checkpoint of.
        known: The value of `known_epochs`: the best of those is what another attempt is told of.
    """
    if not spec.keeps_best:
        return set()
    sign = 1.0 if spec.mode == Mode.MIN else -1.0
    before = math.inf if spec.best_metric is None else sign * spec.best_metric
    found = set()
    for last in {math.inf, math.inf if known is None else known}:
        seen = (
            (sign * r.metrics[spec.metric], r.epoch) for r in reports if r.epoch <= last and r.epoch in whole
        )
        metric, epoch = min((s for s in seen if math.isfinite(s[0])), default=(math.inf, 0))
        found |= {epoch} if metric < before else set()
    return found


def remove_superseded_attempts(
    directory: Path,
    resume_from: str | None,
    falls_back_to: str | None = None,
    kept: Collection[str] = (),
) -> None:
    """Remove the checkpoints of all attempts before those that wrote ``resume_from`` and ``falls_back_to``.

    The controller has recorded ``resume_from`` as the trial's newest checkpoint. Any successor of this
    attempt begins there or later, or, if that cannot be read any more, at ``falls_back_to``, the one before.
    Whatever reads checkpoints afterwards (`best`, `export`, the next stage) reads the newest.

    Args:
        directory: The directory of this attempt, beside those of the others.
        resume_from: The job's ``resume_from``: the directory or URL of a checkpoint.
        falls_back_to: The same of the checkpoint before that.
        kept: Paths of checkpoints that stay.
    """
    origin = _origin(resume_from)
    if origin is None or number_of(directory.name) is None:
        return
    first = min(origin, origin if falls_back_to is None else _origin(falls_back_to) or 0)
    for folder in directory.parent.glob("attempt-*"):
        number = number_of(folder.name)
        if number is not None and number < first:
            remove_attempt(folder, kept)


def _origin(place: str | None) -> int | None:
    """Return the number of the attempt that wrote a checkpoint, or None if that is not to be seen."""
    return number_of(place.rstrip("/").split("/")[-2]) if place and "/" in place else None
