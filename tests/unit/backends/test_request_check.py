"""Whether a queue of PBS takes what is asked for; Slurm itself judges in the integration tests."""

from __future__ import annotations

import json

import pytest

from parsl_rasda.backends.parsl.request_check import read_queue


def shown(**fields: object) -> str:
    limits = {"resources_max": {"nodect": 10, "walltime": "24:00:00"}, "resources_min": {"nodect": 2}}
    return json.dumps({"Queue": {"gpu": {"enabled": "True", "started": "True", **limits, **fields}}})


def test_a_request_within_the_limits_is_taken() -> None:
    answer = read_queue(shown(), nodes=10, walltime="24:00:00")
    assert answer is not None
    assert answer.is_taken


@pytest.mark.parametrize(
    ("nodes", "walltime", "queue", "said"),
    [
        (11, "01:00:00", {}, "at most 10"),
        (1, "01:00:00", {}, "at least 2"),
        (4, "24:00:01", {}, "at most 24:00:00"),
        (4, "01:00:00", {"enabled": "False"}, "takes no jobs"),
        (4, "01:00:00", {"started": "False"}, "starts no jobs"),
    ],
)
def test_a_request_beyond_them_is_told_with_the_limit(
    nodes: int, walltime: str, queue: dict[str, str], said: str
) -> None:
    answer = read_queue(shown(**queue), nodes=nodes, walltime=walltime)
    assert answer is not None
    assert not answer.is_taken
    assert said in answer.words


@pytest.mark.parametrize("said", ["", "qstat: unknown queue", "{}", '{"Queue": {"a": {}, "b": {}}}'])
def test_no_answer_is_no_judgement(said: str) -> None:
    assert read_queue(said, nodes=1, walltime="01:00:00") is None
