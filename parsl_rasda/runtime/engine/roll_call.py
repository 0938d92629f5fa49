"""Whether all ranks do the same: they say what it is before they do it together.

Ranks that call different collective operations talk past each other: gloo aborts, NCCL waits for half an
hour, and neither says why. So each operation between steps is a *meeting*: a rank says what it is about to
do, in the store in which the ranks have met, and goes on once all have said the same. What differs is told to
all of them, with the lines of the user's code. A meeting costs a few messages, and an epoch has a few
meetings. A step costs nothing: a thread finds the rank that waits in one while others have gone on to a
meeting.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from parsl_rasda.errors import TrainingError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LOOK_S = 1.0  # how often the thread looks whether its rank waits in a step
_PACKAGE = str(Path(__file__).parents[2])
_ADVICE = (
    "Every rank must call the same, in the same order and equally often; only prints and plots are rank 0's."
)


@dataclass(frozen=True, slots=True)
class Call:
    """What a rank is about to do.

    Attributes:
        what: In words.
        steps: How many steps it has begun before.
        detail: What must be the same, besides, on all ranks.
        rank: Whose call it is.
        where: The line of the user's code.
    """

    what: str
    steps: int
    detail: str
    rank: int
    where: str

    def is_as(self, other: Call) -> bool:
        """Whether both ranks do the same."""
        return (self.what, self.steps, self.detail) == (other.what, other.steps, other.detail)

    def words(self, other: Call) -> str:
        """Return who does what, for people; ``other`` is what another rank does."""
        steps = f" after {self.steps} steps" if self.what == other.what and self.steps != other.steps else ""
        detail = f" {self.detail}" if self.what == other.what and self.detail != other.detail else ""
        return f"rank {self.rank} is in {self.what}{detail}{steps} ({self.where})"


class RollCall:
    """The meetings of the ranks of a job."""

    def __init__(self, rank: int, size: int, store: Store, patience_s: float) -> None:
        """Begin to count.

        Args:
            rank: Of this process.
            size: Number of ranks.
            store: Where they tell each other.
            patience_s: How long to wait for the others [s].
        """
        self._rank, self._size, self._store = rank, size, store
        self._patience = timedelta(seconds=patience_s)
        self._meetings = self._steps = 0
        self._is_meeting = False
        self._main = threading.get_ident()
        threading.Thread(target=self._watch, name="roll-call", daemon=True).start()

    def enter_step(self) -> None:
        """Note that this rank begins to exchange what a step needs."""
        self._steps += 1

    def meet(self, what: str, detail: str = "") -> None:
        """Wait until all ranks are about to do the same.

        Raises:
            TrainingError: On every rank that waits, if one does something else.
        """
        number, store = self._meetings, self._store
        self._is_meeting = True
        self._meetings += 1
        mine = Call(what, self._steps, detail, self._rank, place_of(sys._getframe()))
        said = store.compare_set(f"at-{number}", "", json.dumps(asdict(mine)))
        first = Call(**json.loads(said))
        if not mine.is_as(first):
            self._say(number, mine, first)
        elif store.add(f"in-{number}", 1) == self._size:
            store.set(f"go-{number}", "-")
        store.wait([f"go-{number}"], self._patience)
        answer = store.get(f"go-{number}").decode()
        if answer != "-":
            raise TrainingError(answer, _ADVICE)
        if self._rank == 0 and number:  # all are here, so all have left the last one
            for kind in ("at", "in", "go"):
                store.delete_key(f"{kind}-{number - 1}")
        self._is_meeting = False

    def part(self) -> None:
        """Let the rank that has the store leave last: a meeting may still be on its way to the others."""
        if self._rank:
            self._store.set(f"left-{self._rank}", "-")
        else:
            self._store.wait([f"left-{rank}" for rank in range(1, self._size)], self._patience)

    def _say(self, number: int, *calls: Call) -> None:
        """Tell all that wait, or will come, what differs."""
        one, two = sorted(calls, key=lambda call: call.rank)
        words = f"The ranks do different things: {one.words(two)}, {two.words(one)}."
        self._store.compare_set(f"go-{number}", "", words)

    def _watch(self) -> None:
        before = (-1, -1)
        while True:
            threading.Event().wait(LOOK_S)
            now = (self._meetings, self._steps)
            if now == before and not self._is_meeting and self._look():
                return
            before = now

    def _look(self) -> bool:
        """Tell those who wait at a meeting if this rank waits for them in a step; return whether it does."""
        number = self._meetings
        try:
            if not self._store.check([f"at-{number}"]):
                return False
            first = Call(**json.loads(self._store.get(f"at-{number}")))
        except RuntimeError:  # rank 0 is gone, and its store
            return True
        steps = self._steps
        if self._meetings != number or steps <= first.steps:
            return False
        frame = sys._current_frames().get(self._main)
        mine = Call("trial.step", steps, "", self._rank, place_of(frame))
        self._say(number, first, mine)
        return True


def place_of(frame: FrameType | None) -> str:
    """Return the innermost line of a stack that is the user's own, as ``file:line``."""
    installed = (_PACKAGE, sys.prefix, sys.base_prefix, "<")
    while frame is not None:
        if not frame.f_code.co_filename.startswith(installed):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
