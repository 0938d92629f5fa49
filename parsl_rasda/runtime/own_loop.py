"""What a trial knows of a loop that is not ours: what it has saved, and how often it is asked to leave.

`Trial.prepare` has an engine, which knows all there is to save. A loop of the user's own, or a Trainer's,
keeps its state in files that only it understands. They are put into a checkpoint as they are::

    epoch-000004/
        header.json         with `given`, the name below
        given/checkpoint    a file or a folder
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from parsl_rasda.confined import confined
from parsl_rasda.errors import DamagedCheckpointError, TrainingError
from parsl_rasda.runtime.checkpoints.checkpoint import GIVEN, publish_checkpoint
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.storage import storing

Save: TypeAlias = Callable[[Path], object]

ASK_EVERY_S = 0.5  # the ranks agree no more often whether they must leave


class OwnLoop:
    """The state of a loop of the user's own.

    Attributes:
        is_joined: Whether `Trial.join` has been called.
        step: Steps of the current epoch that the checkpoint to resume from holds.
        samples: Samples of an epoch, if the loop has told.
    """

    def __init__(self) -> None:
        self.is_joined = False
        self.step = 0
        self.samples: int | None = None
        self._source: Path | Save | None = None
        self._has_given = False
        self._steps = self._next_question = 0
        self._asked: tuple[int, float] | None = None

    # ------------------------------------------------------------------------------------ checkpoints

    def give(self, checkpoint: str | Path | Save | None) -> None:
        """Note where the state is, or the function that saves it; it is forgotten with the next one."""
        self._source = Path(checkpoint) if isinstance(checkpoint, str) else checkpoint
        self._has_given |= checkpoint is not None

    @property
    def saves(self) -> bool:
        """Whether checkpoints are made of what the loop gives."""
        return self._has_given

    @property
    def has_files(self) -> bool:
        """Whether it has saved already."""
        return isinstance(self._source, Path)

    def write(self, path: Path, header: Mapping[str, Any], group: Group) -> None:
        """Make a checkpoint of what was given; every rank must call it.

        Raises:
            TrainingError: If nothing was given, or what was given is not there.
            StorageError: If the file system fails.
        """
        source, is_main = self._source, group.rank == 0
        if source is None:
            raise TrainingError(
                f"A checkpoint is due after {header['epoch']} epochs, but trial.report was given none.",
                "Give it one each time, as a function that is called when it is due: checkpoint=save.",
            )
        part = path.with_name(path.name + ".tmp")
        try:
            if is_main:
                shutil.rmtree(part, ignore_errors=True)
                with storing(path):
                    (part / GIVEN).mkdir(parents=True)
            group.meet("the beginning of a checkpoint")
            name = "checkpoint" if callable(source) else source.name
            if callable(source):
                source(part / GIVEN / name)
            group.meet("the end of a checkpoint")
            if is_main:
                if not callable(source):
                    _move(source, part / GIVEN / name)
                publish_checkpoint(part, path, {**header, GIVEN: name})
        except BaseException:
            if is_main:
                shutil.rmtree(part, ignore_errors=True)
            raise

    # ---------------------------------------------------------------------------------------- leaving

    def must_leave(self, group: Group, *, is_told: bool) -> bool:
        """End a step, and return whether all ranks leave after it; every rank must call it.

        Several ranks agree, which takes a message; so they do at most a few times a second.

        Args:
            group: The ranks.
            is_told: Whether this one has a reason to leave.
        """
        if group.size == 1:
            return is_told
        self._steps += 1
        if self._steps < self._next_question:
            return False
        now = time.monotonic()
        steps, since = self._asked or (self._steps - 1, now)
        took_us = int(1e6 * (now - since) / (self._steps - steps)) if self._asked else int(1e6 * ASK_EVERY_S)
        self._asked = self._steps, now
        leaves, slowest_us = group.agree((int(is_told), took_us))
        self._next_question = self._steps + max(1, int(1e6 * ASK_EVERY_S) // max(1, slowest_us))
        return bool(leaves)


def given_in(path: Path, header: Mapping[str, Any]) -> Path:
    """Return where a checkpoint has what a loop gave.

    Raises:
        DamagedCheckpointError: If it is not in the checkpoint.
    """
    try:
        given = confined(path / GIVEN, str(header[GIVEN]))
    except ValueError as error:
        raise DamagedCheckpointError(str(path), str(error)) from error
    if not given.exists():
        raise DamagedCheckpointError(str(path), f"{GIVEN}/{given.name} is missing")
    return given


def _move(source: Path, place: Path) -> None:
    if not source.exists():
        raise TrainingError(
            f"trial.report got checkpoint={str(source)!r}, but there is no such file or folder.",
            "Save it before, on the file system that the ranks share.",
        )
    with storing(place):
        shutil.move(source, place)
