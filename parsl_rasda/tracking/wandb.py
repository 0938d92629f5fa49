"""Trials as runs of Weights & Biases, offline or online; the only module that imports its library.

Offline, a run is a folder of files for `wandb sync`. After a kill nobody knows what is in one that was not
finished: it is written again, whole. Online, the server says how far a run has come.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; offline means that nobody is called
import wandb

from parsl_rasda.orchestration.curves import Curve
from parsl_rasda.study.observers import TrackerSpec
from parsl_rasda.tracking.base import Origin, plain_config
from parsl_rasda.types import TrialId, TrialState

_WHOLE = "whole.json"  # in the folder of a run that was finished: of what


@dataclass(slots=True)
class _Open:
    """A run that is being written.

    Attributes:
        rows: What was written: epoch and time of each.
    """

    run: Any  # wandb is untyped
    rows: list[tuple[float, float]]


class WandbTracker:
    """A run for each trial, in a group for the search."""

    def __init__(self, spec: TrackerSpec, origin: Origin, directory: Path) -> None:
        """Write below a folder, or to the server.

        Args:
            spec: Project, entity and mode.
            origin: Of the trials.
            directory: Where files are.
        """
        self._spec, self._origin, self._directory = spec, origin, directory
        self._open: dict[TrialId, _Open] = {}
        self._finished: dict[TrialId, tuple[Path, str]] = {}
        self._rewritten: dict[TrialId, int] = {}  # how often; W&B may still be closing a run of the same id

    def write(self, curve: Curve) -> None:
        """Write what is missing of a trial."""
        rows = [(place, at) for place, at, _ in curve.rows]
        if curve.began is None or self._is_whole(curve, rows):
            return
        found = self._open.get(curve.trial)
        is_other = found is not None and rows[: len(found.rows)] != found.rows  # epochs were trained again
        if found is None or (is_other and self._spec.mode == "offline"):
            found = self._begin(curve, found)
        for place, at, metrics in curve.rows[len(found.rows) :]:
            found.rows.append((place, at))
            if len(found.rows) > found.run.starting_step:
                data = {**metrics, "epoch": place, "_timestamp": at}
                found.run.log(data, step=len(found.rows))
        if curve.state is not None:
            self._finish(curve, found)

    def close(self) -> None:
        """Finish all runs as they are: they go on when the study does."""
        for found in self._open.values():
            found.run.finish()
        self._open.clear()
        for file, what in self._finished.values():  # not before: W&B's own process writes a moment later
            file.write_text(what, encoding="utf-8")

    def _finish(self, curve: Curve, found: _Open) -> None:
        found.run.summary.update({"state": str(curve.state), "reason": curve.reason})
        folder = Path(found.run.dir).parent
        found.run.finish(exit_code=int(curve.state is TrialState.FAILED))
        del self._open[curve.trial]
        if self._spec.mode == "offline":
            self._finished[curve.trial] = (folder / _WHOLE, json.dumps([curve.attempts, found.rows]))

    def _begin(self, curve: Curve, before: _Open | None) -> _Open:
        if before is not None:
            before.run.finish()
            self._rewritten[curve.trial] = self._rewritten.get(curve.trial, 0) + 1
        self._finished.pop(curve.trial, None)
        if self._spec.mode == "offline":
            for folder in self._folders(curve):
                shutil.rmtree(folder)
        self._directory.mkdir(parents=True, exist_ok=True)
        again = self._rewritten.get(curve.trial, 0)
        run = wandb.init(
            project=self._spec.project or self._origin.name,
            entity=self._spec.entity,
            group=f"{self._origin.name}-{self._origin.mark}",
            id=f"{self._origin.key(curve)}.r{again}" if again else self._origin.key(curve),
            name=str(curve.trial),
            dir=str(self._directory),
            mode=self._spec.mode,
            config=plain_config(curve.config),
            resume="allow" if self._spec.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_stats=True,  # of the controller's machine, which does not train
                x_disable_machine_info=True,
                x_disable_meta=True,
            ),
        )
        run.define_metric("*", step_metric="epoch")
        self._open[curve.trial] = found = _Open(run, [])
        return found

    def _is_whole(self, curve: Curve, rows: list[tuple[float, float]]) -> bool:
        """Whether a trial that has ended was written as it is."""
        if curve.state is None or self._spec.mode != "offline":
            return False
        words = json.dumps([curve.attempts, rows])
        if self._finished.get(curve.trial, (None, ""))[1] == words:
            return True
        told = json.loads(words)
        wholes = [folder / _WHOLE for folder in self._folders(curve)]
        return any(f.exists() and json.loads(f.read_text(encoding="utf-8")) == told for f in wholes)

    def _folders(self, curve: Curve) -> Iterator[Path]:
        for name in (self._origin.key(curve), f"{self._origin.key(curve)}.r*"):
            yield from (self._directory / "wandb").glob(f"offline-run-*-{name}")
