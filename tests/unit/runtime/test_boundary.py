"""What a rank answers at an epoch boundary."""

from __future__ import annotations

import pytest

from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.attempt.boundary import Answer, own_answer
from tests.unit.runtime.attempts import attempt_in

NO_REASON, A_REASON = (lambda: False), (lambda: True)


class Channel:
    """A controller that answers at once, or not within the time."""

    def __init__(self, message, *, is_deaf=False) -> None:
        self._message, self.is_deaf = message, is_deaf

    def answer(self, timeout_s, unless):
        return self._message


@pytest.fixture
def attempt_at(tmp_path):
    def make(epoch, message=None, *, interactive=True) -> Attempt:
        attempt = attempt_in(tmp_path, interactive=interactive)
        attempt.epoch, attempt.channel = epoch, Channel(message)
        return attempt

    return make


def test_a_job_without_a_controller_goes_on_to_its_end(attempt_at) -> None:
    assert own_answer(attempt_at(3, interactive=False), NO_REASON) == (Answer.GO, 4, 2, 2)
    assert own_answer(attempt_at(4, interactive=False), A_REASON) == (Answer.LEAVE, 0, 0, 0)


def test_an_answer_that_will_never_come_is_not_waited_for(attempt_at) -> None:
    attempt = attempt_at(3)
    attempt.channel = Channel(None, is_deaf=True)
    assert own_answer(attempt, NO_REASON)[0] is Answer.PREEMPT
    assert attempt.preempt_cause == "the control channel broke"


def test_a_reason_to_leave_comes_before_the_controllers_answer(attempt_at) -> None:
    assert own_answer(attempt_at(3, {"op": "go", "until": 8}), A_REASON)[0] is Answer.PREEMPT
    assert own_answer(attempt_at(3, interactive=False), A_REASON)[0] is Answer.PREEMPT


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"op": "go", "until": 8, "replicas": 4}, (Answer.GO, 8, 4, 4)),
        ({"op": "go", "until": 8, "replicas": 4, "batches": 1}, (Answer.GO, 8, 4, 1)),
        ({"op": "go", "until": 8}, (Answer.GO, 8, 2, 2)),
        ({"op": "go", "until": 4}, (Answer.LEAVE, 0, 0, 0)),  # of a stretch that is done already
        ({"op": "leave"}, (Answer.LEAVE, 0, 0, 0)),
        (None, (Answer.WAIT, 0, 0, 0)),
    ],
)
def test_an_interactive_job_does_what_the_controller_answers(attempt_at, message, answer) -> None:
    assert own_answer(attempt_at(4, message), NO_REASON) == answer


def test_the_largest_answer_of_all_ranks_counts() -> None:
    assert sorted(Answer) == [Answer.WAIT, Answer.GO, Answer.LEAVE, Answer.PREEMPT]
