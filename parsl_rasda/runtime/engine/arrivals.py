"""When the gradients of a bucket are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parsl_rasda.errors import TrainingError


class Arrivals:
    """Tells bucket by bucket, in the same order on every rank, when a backward pass has filled it.

    The first backward pass of each parameter is only watched: its bucket is taken after the pass. If a
    gradient comes twice in it, as activation checkpointing with reentrant passes may have it, all buckets are
    taken after the pass from then on.

    Args:
        parameters: Their gradients are awaited.
        places: The parameters of each bucket.
        take: Called with the number of a bucket.
        come_twice: Whether gradients have come twice, before a restart.

    Attributes:
        come_twice: Whether gradients have come twice in one pass.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        places: Sequence[Sequence[int]],
        take: Callable[[int], None],
        *,
        come_twice: bool,
    ) -> None:
        self.come_twice = come_twice
        self._parameters, self._places, self._take = parameters, places, take
        self._bucket_of = {parameters[i]: number for number, bucket in enumerate(places) for i in bucket}
        self._hooked: set[Tensor] = set()
        self._watched: Counter[Tensor] = Counter()  # those that come for the first time in this pass
        self._seen: set[Tensor] = set()  # those that have come in an earlier one
        self._waiting: list[set[Tensor]] = []
        self._next = len(places)
        self._is_listening = False

    def listen(self) -> None:
        """Begin a backward pass."""
        for parameter in self._parameters:  # the user may have unfrozen some
            if parameter.requires_grad and parameter not in self._hooked:
                self._hooked.add(parameter)
                parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call] # torch
        trained = ({p for i in b if (p := self._parameters[i]).requires_grad} for b in self._places)
        self._waiting = list(trained)
        self._next, self._is_listening = 0, True

    def end(self) -> None:
        """End a backward pass: take the remaining buckets."""
        if self._watched:
            self.come_twice = self.come_twice or max(self._watched.values()) > 1
            self._seen |= self._watched.keys()
            self._watched.clear()
        self._is_listening = False
        while self._next < len(self._places):
            self._take_next()

    def _arrived(self, parameter: Tensor) -> None:
        if not self._is_listening or parameter.grad is None or parameter.grad.layout is not torch.strided:
            return  # what is sparse is refused after the backward pass
        if parameter not in self._seen:
            self._watched[parameter] += 1
            return
        if self.come_twice:
            return
        number = self._bucket_of[parameter]
        if number < self._next:
            raise TrainingError(
                "A gradient arrived twice in one backward pass, but once in its first one.",
                "Use activation checkpointing with use_reentrant=False.",
            )
        self._waiting[number].discard(parameter)
        while self._next < len(self._waiting) and not self._waiting[self._next]:
            self._take_next()

    def _take_next(self) -> None:
        number, self._next = self._next, self._next + 1
        self._take(number)
