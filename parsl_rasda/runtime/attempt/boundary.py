"""What a job does at an epoch boundary: it goes on, leaves, or asks its controller."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from parsl_rasda.runtime.attempt.attempt import Attempt

WAIT_SLICE_S = 1.0


class Answer(IntEnum):
    """What happens at an epoch boundary. Where ranks differ, the largest counts."""

    WAIT = 0
    GO = 1
    LEAVE = 2
    PREEMPT = 3


def own_answer(attempt: Attempt, must_leave: Callable[[], bool]) -> tuple[int, int, int, int]:
    """Return this rank's answer and, with `Answer.GO`, the next `until`, replicas and batches.

    Args:
        attempt: Of this rank, whose channel is asked if the job is interactive.
        must_leave: Returns whether this rank has a reason to leave.
    """
    is_interactive = attempt.spec.interactive
    if not is_interactive and attempt.epoch >= attempt.until:
        return Answer.LEAVE, 0, 0, 0
    if must_leave():
        return Answer.PREEMPT, 0, 0, 0
    if attempt.channel and attempt.channel.is_deaf:
        attempt.preempt("the control channel broke")
        return Answer.PREEMPT, 0, 0, 0
    if not is_interactive:
        return Answer.GO, attempt.until, attempt.replicas, attempt.batches
    message = attempt.channel.answer(WAIT_SLICE_S, must_leave) if attempt.channel else None
    if message is None:
        return Answer.WAIT, 0, 0, 0
    until = int(message.get("until", 0))
    if message["op"] == "go" and until > attempt.epoch:
        replicas = message.get("replicas")
        if replicas is None:
            return Answer.GO, until, attempt.replicas, attempt.batches
        return Answer.GO, until, int(replicas), int(message.get("batches", replicas))
    return Answer.LEAVE, 0, 0, 0
