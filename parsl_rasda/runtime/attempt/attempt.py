"""State and files of one attempt on a rank: what it was ordered, what it reports, why it leaves.

Files come before messages: a line of ``epochs.jsonl`` is synced before the controller is told of it.
``report.json`` belongs to the first rank that writes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import create_file
from parsl_rasda.checkpoint_files import FETCHED, remove_checkpoint
from parsl_rasda.energy import EnergyMeter
from parsl_rasda.errors import DamagedCheckpointError
from parsl_rasda.protocol import (
    DEADLINE_MARGIN_S,
    STEPS,
    Checkpoint,
    EpochReport,
    JobResult,
    JobSpec,
    Steps,
)
from parsl_rasda.runtime.attempt.channel import ControlChannel, OwnDescriptor, say
from parsl_rasda.runtime.attempt.launch_context import LaunchContext
from parsl_rasda.runtime.checkpoints.retention import (
    known_epochs,
    remove_superseded_attempts,
    spared,
    superseded,
)
from parsl_rasda.runtime.checkpoints.seal import is_whole
from parsl_rasda.runtime.checkpoints.shared import CopyGoneError, SharedCheckpoints, fetch, is_url
from parsl_rasda.runtime.engine.replicas import share_of_replica
from parsl_rasda.storage import storing
from parsl_rasda.types import Fault, GradientNoise, Outcome, Phase, ScheduleEntry, schedule_entry

FINAL_REPORT_S = 5.0  # kept free before the deadline, for the last files and messages
FORKED = "PARSL_RASDA_FORKED"  # set by a fork server: how long the rank waited for torch [s]


class PreemptRequested(BaseException):
    """Unwinds the training function, because the job must leave now.

    Args:
        agreed: Whether every rank leaves at this point.
    """

    def __init__(self, *, agreed: bool) -> None:
        super().__init__(agreed)
        self.agreed = agreed


class Attempt:
    """State and files of one attempt on this rank.

    Attributes:
        epoch: Epochs done.
        until: Epochs after which the job asks the controller, or ends.
        schedule: As in `JobSpec`, the current stretch last.
        exact: Whether training gives the same bits at any width, in words; empty if nobody knows.
        devices: Models of the ranks' GPUs, each once; on rank 0.
        outcome: How the attempt ends, once that is decided.
        is_finished: Whether the training function has ended its trial by itself.
        history: The reports of this attempt, on rank 0.
        preempt_cause: Why the job must leave at its next step, or None.
        lost_origin: Why the checkpoint to resume from cannot be read, or None.
        interruptible: Whether a signal may unwind the training function at any point, because there is
            no work to save.
        is_prepared: Whether a model is in training, which leaves at its next step.
        is_unwinding: Whether a signal has unwound the training function.
        control: The way to the agent, or None outside a launch.
        phase: How far this rank got.
        wakeup: Where Python writes the numbers of signals (`signal.set_wakeup_fd`), if anywhere.
        meter: Of what the job draws on this node, if this rank has to tell.
    """

    def __init__(self, spec: JobSpec, context: LaunchContext) -> None:
        self.spec, self.context = spec, context
        self.directory = Path(spec.directory)
        self.channel: ControlChannel | None = None
        self.control: OwnDescriptor | None = None
        self.phase = Phase.NO_RANK
        self.wakeup: OwnDescriptor | None = None
        self.meter: EnergyMeter | None = None
        self.epoch, self.until = spec.epoch, spec.until
        self.schedule: tuple[ScheduleEntry, ...] = spec.schedule
        self.samples: int | None = None  # of an epoch, once they have been counted
        self.noise: GradientNoise | None = None  # of the epoch that is done
        self.exact = ""
        self.devices: tuple[str, ...] = ()
        self._told: tuple[str, tuple[str, ...]] = ("", ())  # of these two
        self.outcome: Outcome | None = None
        self.is_finished = False
        self.history: list[EpochReport] = []
        self.preempt_cause: str | None = None
        self.lost_origin: str | None = None
        self.interruptible = True
        self.is_prepared = False
        self.is_unwinding = False
        self.slots: tuple[str, ...] = spec.slots
        self.checkpoints: list[Path] = []  # the whole ones of this attempt, oldest first
        self._epoch_of: dict[Path, int] = {}
        self._rungs: set[int] = set()  # whose checkpoints stay
        self._shared = (
            SharedCheckpoints(spec.share_at, self._superseded, self._spared)
            if spec.share_at and context.rank == 0
            else None
        )
        self._warning = ""
        self._is_ready = False
        self._step_told_at = 0.0

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the job."""
        return self.context.rank == 0

    @property
    def replicas(self) -> int:
        """Replicas of the current stretch."""
        return self.schedule[-1][1]

    @property
    def batches(self) -> int:
        """How many `batch_size` make a step of the current stretch."""
        return self.schedule[-1][-1]

    @property
    def replica_share(self) -> int:
        """Samples of a step, at most, that one replica takes."""
        return share_of_replica(self.spec.training.batch_size, self.batches, self.replicas)

    def go_on(self, until: int, replicas: int, batches: int) -> None:
        """Note what is trained from here on."""
        self.until = until
        if (replicas, batches) != (self.replicas, self.batches):
            self.schedule = (*self.schedule, schedule_entry(self.epoch, replicas, batches))

    def preempt(self, cause: str) -> None:
        """Ask the job to leave at its next step; the first cause is kept."""
        self.preempt_cause = self.preempt_cause or cause

    def must_leave(self, margin_s: float = 0.0) -> bool:
        """Return whether this rank was asked to leave, or its deadline is near; the main thread asks.

        Args:
            margin_s: Time that leaving takes, besides the usual margin before the deadline [s].
        """
        if self.wakeup is not None and not self.wakeup.is_ours():
            signal.set_wakeup_fd(-1)  # it may be a file of the training function by now
            self.wakeup = None
        deadline = self.spec.deadline
        if deadline is not None and time.time() > deadline - DEADLINE_MARGIN_S - margin_s:
            self.preempt("the deadline is near")
        return self.preempt_cause is not None

    def warn(self, sentence: str) -> None:
        """Write a warning to the log and into the attempt's report, once."""
        if self.is_main and sentence != self._warning:
            self._warning = sentence
            warnings.warn(sentence, stacklevel=2)

    def enter(self, phase: Phase) -> None:
        """Note how far this rank got, and tell the agent: a rank that is killed cannot tell it any more."""
        if phase is not self.phase:
            self.phase = phase
            if self.is_main and self.control is not None:
                say(self.control, "phase", {"phase": phase})

    def ready(self) -> None:
        """Tell the controller once that the start is over and work has begun."""
        if not self._is_ready:
            self._is_ready = True
            self.enter(Phase.TRAINING)
            self.send("ready", {"once_s": float(os.environ.get(FORKED, "0"))})

    def step(self) -> None:
        """Show now and then that the ranks take steps: rank 0, who would wait for any that does not."""
        now = time.monotonic()
        if self.is_main and now >= self._step_told_at + self.spec.training.stall_after_s / 5:
            self._step_told_at = now
            if self.channel:
                self.channel.send("step")
            else:
                with contextlib.suppress(OSError):
                    (self.directory / STEPS).touch()

    def record(
        self,
        metrics: Mapping[str, float],
        seconds: float,
        steps: Steps = (),
        *,
        includes_startup: bool = False,
    ) -> None:
        """Report the epoch that is now done: first to the file, then to the controller."""
        if not self.is_main:
            return
        if not self.history:
            spec = self.spec
            remove_superseded_attempts(self.directory, spec.resume_from, spec.falls_back_to, spec.kept)
        report = EpochReport(
            trial=self.spec.trial,
            attempt=self.spec.attempt,
            epoch=self.epoch,
            metrics=metrics,
            seconds=seconds,
            checkpoint=self._reachable(),
            at=time.time(),
            slots=self.slots,
            samples=self.samples,
            noise=self.noise,
            steps=steps,
            includes_startup=includes_startup,
            exact="" if self.exact == self._told[0] else self.exact,
            devices=() if self.devices == self._told[1] else self.devices,
        )
        self._told = self.exact, self.devices
        self.history.append(report)
        path = self.directory / "epochs.jsonl"
        with storing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.send("epoch", report.to_json())

    def add_checkpoint(self, path: Path, epoch: int | None = None) -> None:
        """Note a whole checkpoint, and remove older ones that nobody needs any more (`retention`).

        Args:
            path: Its directory.
            epoch: Epochs done in it, if not as many as now.
        """
        if path in self.checkpoints:
            return
        self.checkpoints.append(path)
        self._epoch_of[path] = self.epoch if epoch is None else epoch
        if self.spec.keeps_rungs and self._epoch_of[path] == self.until:
            self._rungs.add(self.until)
        if self._shared:
            self._shared.add(path, self._epoch_of[path])
        places = [str(checkpoint) for checkpoint in self.checkpoints]
        count = superseded(places, (), None) if self._shared else self._superseded(places)
        stay = self._spared()
        for old in self.checkpoints[:count]:
            if self._shared and self._shared.needs(old):
                break
            if self._epoch_of[old] in stay:
                continue
            self.checkpoints.remove(old)
            if self.is_main:
                remove_checkpoint(old)

    def _spared(self) -> set[int]:
        """Return the epochs whose checkpoints stay for good, as far as one can see now."""
        known = known_epochs(self.directory) if self.spec.keeps_best else None
        return self._rungs | spared(self.spec, self.history, self._epoch_of.values(), known)

    def _superseded(self, places: Sequence[str]) -> int:
        """Return how many of these checkpoints may be removed, counted from the oldest."""
        return superseded(places, tuple(self.history), known_epochs(self.directory))

    def share(self) -> None:
        """If the study shares checkpoints, wait until the last one has been copied.

        Raises:
            StoreError: If it could not be copied, or not before the job must leave.
        """
        if self._shared:
            deadline = self.spec.deadline
            self._shared.finish(
                None if deadline is None else max(0.0, deadline - FINAL_REPORT_S - time.time())
            )

    @contextmanager
    def resuming(self) -> Iterator[None]:
        """Note whether the checkpoint to resume from is gone or damaged: the trial has others."""
        try:
            yield
        except (DamagedCheckpointError, CopyGoneError) as error:
            self.lost_origin = f"{error}; the trial resumes from an older one, or starts again"
            raise

    def find_checkpoint(self, place: str) -> Path:
        """Return the directory of a checkpoint of this trial; rank 0 must be the first to ask.

        It fetches what is not on this site, or is damaged here.

        Args:
            place: The checkpoint's directory or URL.

        Raises:
            CopyGoneError: If it is not at the URL any more, or is damaged there.
            StoreError: If it cannot be fetched.
        """
        if not is_url(place):
            return Path(place)
        attempt, name = place.split("/")[-2:]
        written_here, fetched = self.directory.parent / attempt / name, self.directory / FETCHED
        if self.is_main and not fetched.exists() and not is_whole(written_here):
            fetch(place, fetched)
        return fetched if fetched.exists() else written_here

    def _reachable(self) -> Checkpoint | None:
        """Return the newest checkpoint that others can read."""
        if self._shared:
            return self._shared.newest
        if not self.checkpoints:
            return None
        newest = self.checkpoints[-1]
        return Checkpoint(str(newest), self._epoch_of[newest])

    def send(self, op: str, message: Mapping[str, Any]) -> None:
        """Send a message to the controller if there is a channel."""
        if self.channel:
            self.channel.send(op, message)

    def close(
        self,
        outcome: Outcome,
        cause: str = "",
        traceback: str = "",
        *,
        fault: Fault | None = None,
        exception: str = "",
    ) -> None:
        """Write the result of the attempt and send it, unless another rank was first.

        What cannot be written, on a full disk for example, is sent all the same, by whatever rank.
        """
        is_leaving = self.outcome is not None or self.preempt_cause is not None
        result = JobResult(
            trial=self.spec.trial,
            attempt=self.spec.attempt,
            outcome=outcome,
            epoch=self.epoch,
            cause=cause,
            checkpoint=self._reachable(),
            traceback=traceback,
            at=time.time(),
            unreadable=self.spec.resume_from if self.lost_origin and outcome is Outcome.LOST else None,
            phase=Phase.LEAVING if is_leaving else self.phase,
            fault=fault,
            exception=exception,
            warning=self._warning,
            finished=self.is_finished and outcome is Outcome.REACHED,
        ).to_json()
        try:
            is_first = create_file(self.directory / "report.json", json.dumps(result, indent=1))
        except OSError:
            if self.control is not None:
                say(self.control, "bye", result)
            return
        if is_first:
            self.send("bye", result)
