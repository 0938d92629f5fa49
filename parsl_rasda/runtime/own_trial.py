"""A trial whose loop is not ours, and what it has in common with a prepared one: it leaves, and saves."""

from __future__ import annotations

import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from parsl_rasda.runtime.attempt.attempt import Attempt, PreemptRequested
from parsl_rasda.runtime.attempt.torchrun import torchrun_environment
from parsl_rasda.runtime.checkpoints.checkpoint import GIVEN
from parsl_rasda.runtime.checkpoints.saver import Saver
from parsl_rasda.runtime.checkpoints.seal import check_files
from parsl_rasda.runtime.engine.group import LOOPBACK, published_address
from parsl_rasda.runtime.engine.learning_rate import rate_factor, scaling_rule
from parsl_rasda.runtime.keeper import Keeper
from parsl_rasda.runtime.own_loop import OwnLoop, Save, given_in
from parsl_rasda.runtime.step_log import StepLog
from parsl_rasda.runtime.trial_facts import TrialFacts

if TYPE_CHECKING:
    from parsl_rasda.runtime.engine.engine import Engine


class OwnTrial(TrialFacts):
    """What a loop without a prepared model calls, besides `Trial.epochs` and `Trial.report`."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._engine: Engine | None = None
        self._in_epoch = self._has_batches = False
        self._began = self._carried_over_s = 0.0
        self._slowest_s = self._last_step = 0.0
        self._logged = StepLog()
        self._own = OwnLoop()
        self._keeper = Keeper(attempt, lambda: self._group, self._own, Saver())

    @cached_property
    def checkpoint(self) -> Path | None:
        """The file or folder that the last attempt gave to `report`, or None at the start.

        Every rank must ask for it, and load it before its first epoch.

        Raises:
            CheckpointError: If it is gone or damaged.
        """
        place = self._spec.resume_from
        if not place:
            return None
        with self._attempt.resuming():
            path = self._keeper.find(place)
            header = self._keeper.resumable_header(path, ())
            if GIVEN not in header:
                return None
            check_files(path)
            given = given_in(path, header)
        self._own.step, self._carried_over_s = header["step"], header["seconds"]
        return given

    @property
    def step_done(self) -> int:
        """How many steps of the current epoch are done.

        With a prepared model, so far; without one, how many `checkpoint` holds, after which the loop goes on.
        """
        return self._own.step if self._engine is None else self._engine.position.step

    def join(self) -> int:
        """Let the ranks meet, and return their number: 1 where slots are only logical.

        If there are several, torch.distributed is initialised then, and the environment is that of torchrun;
        the launcher's variables are gone in any case. From then on a request to leave waits for the end of a
        step (`end_step`) or of an epoch.

        Raises:
            PeersLostError: If a rank does not come.
        """
        if self._own.is_joined:
            return self._group.size
        self._attempt.interruptible, self._attempt.is_prepared, self._own.is_joined = False, True, True
        self._group.device = self.device
        spec, context = self._spec, self._attempt.context
        address: tuple[str, int, str] = (LOOPBACK, 0, "")
        if self._group.size > 1:
            address = published_address(self._attempt.directory, self._group.size, spec.rendezvous_s)
        environment = torchrun_environment(spec, context, os.environ, address[0], address[1])
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        if self._group.size > 1:
            os.environ.update(environment)
        return self._group.size

    def end_step(self, step: int, save: Save | None = None, *, samples: int | None = None) -> None:
        """Say that a step is done, at which the trial leaves if it must; for a loop that has joined.

        Args:
            step: Steps done in this epoch, with those of earlier attempts.
            save: Called on every rank, as in `report`, if the trial leaves: the next attempt goes on at
                `step_done`. Without it, what this epoch has done is lost.
            samples: Samples of an epoch, for those who plan.
        """
        self._own.samples = samples
        self._attempt.step()
        self._attempt.ready()
        now = time.monotonic()
        self._slowest_s, self._last_step = max(self._slowest_s, now - self._last_step), now
        if not self._own.must_leave(self._group, is_told=self._must_leave()):
            return
        if save is not None:
            self._own.give(save)
            self._own.step = step
            self._checkpoint(wait=True)
        raise PreemptRequested(agreed=True)

    def leave(self, cause: str, save: Save) -> NoReturn:
        """Leave as preempted between two epochs, on every rank: another attempt goes on at once.

        Args:
            cause: Why this one cannot.
            save: As in `report`.
        """
        self._attempt.preempt(cause)
        if not self._keeper.has_saved:
            self._own.give(save)
            self._checkpoint(wait=True)
        self._keeper.note(None)
        raise PreemptRequested(agreed=True)

    def rate_factor(self, position: float, optimizer: type) -> float:
        """Return the study's factor on the learning rate: `lr_scaling` and warm-up.

        Args:
            position: In training [epochs].
            optimizer: Its class, for `lr_scaling: auto`.
        """
        training = self._spec.training
        return rate_factor(
            position,
            self._attempt.schedule,
            scaling_rule(training.lr_scaling, optimizer),
            initial=training.warmup_initial,
            rescale=training.warmup_rescale,
        )

    # ------------------------------------------------------------------------------------- internals

    def _must_leave(self) -> bool:
        return self._attempt.must_leave(3 * max(self._slowest_s, self._keeper.slowest_s))

    def _checkpoint(self, *, wait: bool) -> None:
        """Save the state of training (`Keeper.save`)."""
        self._keeper.save(self._engine, lambda now: now - self._began + self._carried_over_s, wait=wait)
