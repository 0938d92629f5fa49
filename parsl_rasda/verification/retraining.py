"""Trains stretches of a run again, by ranks of this machine at another width, and compares every bit.

It starts the ranks by itself: no launcher is needed, and no allocation but the one that it runs in. The run's
own files are only read.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.trial_record import EXACT
from parsl_rasda.protocol import EpochReport, JobSpec, read_epochs, read_report
from parsl_rasda.types import Outcome
from parsl_rasda.verification.decisions import same_bits
from parsl_rasda.verification.stretches import Stretch

_POLL_S = 0.05
_START_S = 300.0  # for ranks to load what they need
_SLOWER = 20  # times the ranks' work, within which a stretch must be trained here
_END_S = 10.0  # for the other ranks, once one has failed


@dataclass(frozen=True, slots=True)
class Retrained:
    """A stretch that was trained again.

    Attributes:
        width: Number of ranks here.
        epochs: How many epochs were compared.
        has_weights: Whether the weights at its end were compared, too.
        difference: What is not the same, in a sentence; empty if every bit is.
        doubt: Why its bits may well differ, in words; empty if they must not, or if it could not be trained.
        note: Other metrics that differ, such as times, which nobody judges by; or empty.
        checkpoint: The one that it ended with here, for what follows; or None.
    """

    stretch: Stretch
    width: int
    epochs: int
    has_weights: bool
    difference: str = ""
    doubt: str = ""
    note: str = ""
    checkpoint: Path | None = None

    @property
    def is_same(self) -> bool:
        """Whether every bit that counts is the same."""
        return not self.difference


def order_of(stretch: Stretch, base: JobSpec, width: int, origin: Path | None, directory: Path) -> JobSpec:
    """Return the order to train a stretch again, apart from the run.

    Args:
        stretch: What was trained.
        base: The order that its attempt had, for what the journal does not say: inputs, training, seed.
        width: Number of ranks.
        origin: The checkpoint to begin with, or None.
        directory: Of the new attempt.
    """
    host = socket.gethostname()
    return replace(
        base,
        directory=str(directory),
        config=dict(stretch.config),
        epoch=stretch.begin,
        until=stretch.until,
        schedule=stretch.schedule,
        world_size=width,
        slots=tuple(f"{host}:{slot}" for slot in range(width)),
        resume_from=None if origin is None else str(origin),
        falls_back_to=None,
        keeps_rungs=False,
        keeps_best=False,
        best_metric=None,
        kept=(),
        obsolete=(),
        share_at=None,
        deadline=None,
        interactive=False,
    )


def retrain(stretch: Stretch, order: JobSpec, environment: Mapping[str, str], end: Path | None) -> Retrained:
    """Train a stretch again and compare it with what the run recorded.

    Args:
        stretch: What was recorded.
        order: As `order_of` made it.
        environment: Variables of the ranks, added to those of this process.
        end: The checkpoint that it ended with, if that is there.
    """
    directory = Path(order.directory)
    directory.mkdir(parents=True)
    order.save(directory / "order.json")
    failure = _run(order, environment, _START_S + _SLOWER * stretch.work_s)
    reports = read_epochs(directory, order.job)
    metric, found = order.metric, {report.epoch: report for report in reports}
    difference = f"could not be trained: {failure}" if failure else _first_difference(stretch, found, metric)
    has_weights, last = False, found[stretch.until].checkpoint if stretch.until in found else None
    if not difference and end is not None and last is not None:
        has_weights, difference = _weights(Path(last.path), end)
    doubt, note = "" if failure else _doubt(stretch, reports), _others(stretch, found, metric)
    saved = None if last is None else Path(last.path)
    epochs = len(stretch.epochs)
    return Retrained(stretch, order.world_size, epochs, has_weights, difference, doubt, note, saved)


def _run(order: JobSpec, environment: Mapping[str, str], patience_s: float) -> str:
    """Run all ranks of an order to their end; return why that was not reached, in words."""
    directory = Path(order.directory)
    words = (sys.executable, "-Pm", "parsl_rasda.runtime", str(directory / "order.json"))
    size = 1 if order.accelerator == "none" else order.world_size  # such slots only count
    until = time.monotonic() + patience_s
    with ExitStack() as stack:
        log = stack.enter_context((directory / "log.txt").open("ab"))
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_end_all, ranks)
        for rank in range(size):
            own = {"PARSL_RASDA_RANK": rank, "PARSL_RASDA_SIZE": size, "PARSL_RASDA_LOCAL_RANK": rank}
            environ = {**os.environ, **environment, **{name: str(value) for name, value in own.items()}}
            ranks.append(
                subprocess.Popen(
                    words, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                until = min(until, time.monotonic() + _END_S)
            if time.monotonic() > until:
                break
            time.sleep(_POLL_S)
    report = read_report(directory, order.job)
    if report is None:
        return f"it ended without a report; {_last_line(directory / 'log.txt')}"
    return "" if report.outcome is Outcome.REACHED else f"it ended as {report.outcome.value}: {report.cause}"


def _end_all(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
        rank.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "its log is empty").strip()


def _first_difference(stretch: Stretch, found: Mapping[int, EpochReport], metric: str) -> str:
    for report in stretch.epochs:
        if report.epoch not in found:
            return f"epoch {report.epoch} was not reached"
        then, now = report.metrics[metric], found[report.epoch].metrics[metric]
        if not same_bits(then, now):
            return f"{metric} after epoch {report.epoch} was {then!r}, is {now!r}"
    return ""


def _others(stretch: Stretch, found: Mapping[int, EpochReport], metric: str) -> str:
    names = {
        name
        for report in stretch.epochs
        if report.epoch in found
        for name, value in report.metrics.items()
        if name != metric and not same_bits(value, found[report.epoch].metrics.get(name, float("inf")))
    }
    return ", ".join(sorted(names))


def _weights(now: Path, then: Path) -> tuple[bool, str]:
    """Return whether there are weights to compare, and what differs."""
    words = (sys.executable, "-Pm", "parsl_rasda.runtime.checkpoints.comparison", str(then), str(now))
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RunDirectoryError(
            str(then), f"cannot be compared: {done.stderr.strip()}", "Is torch installed?"
        )
    names = json.loads(done.stdout)
    if names is None:
        return False, ""
    if isinstance(names, str):
        return True, names
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return True, f"the weights differ from {then}: {names[0]}{more}" if names else ""


def _doubt(stretch: Stretch, reports: Sequence[EpochReport]) -> str:
    here = frozenset(name for report in reports for name in report.devices)
    if here != stretch.devices:
        then, now = (", ".join(sorted(names)) or "CPUs" for names in (stretch.devices, here))
        return f"the run had {then}, here is {now}"
    if stretch.exact == EXACT:
        return ""
    return stretch.exact or "nobody knows whether its training is exact"
