from __future__ import annotations

import json
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.errors import RunDirectoryError

VARIABLE = orphan_reaper.RUN_VARIABLE


@pytest.fixture
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex
    yield value
    orphan_reaper.end_marked(VARIABLE, value, grace_s=0.0)


def start(mark: str, script: str = "echo up; exec sleep 600") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        ("sh", "-c", script),
        env={**os.environ, VARIABLE: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_a_marked_process_is_found_and_ended(mark: str) -> None:
    with start(mark) as process:
        assert [p.pid for p in orphan_reaper.marked(VARIABLE, mark)] == [process.pid]
        assert orphan_reaper.end_marked(VARIABLE, mark, grace_s=5.0) == 1
        assert process.wait(5) == -15


def test_an_orphan_in_a_session_of_its_own_is_found_too(mark: str) -> None:
    with start(mark, "setsid sh -c 'echo up; sleep 600; :' & wait") as parent:
        parent.kill()
        parent.wait()
        assert orphan_reaper.marked(VARIABLE, mark)
        orphan_reaper.end_marked(VARIABLE, mark, grace_s=5.0)
        assert orphan_reaper.marked(VARIABLE, mark) == ()


def test_one_that_ignores_the_request_is_killed(mark: str) -> None:
    with start(mark, "trap '' TERM; echo up; sleep 600; sleep 600") as process:
        orphan_reaper.end_marked(VARIABLE, mark, grace_s=0.2)
        assert process.wait(5) == -9


def test_other_marks_are_left_alone(mark: str) -> None:
    with start(mark) as process:
        assert orphan_reaper.end_marked(VARIABLE, mark + "0", grace_s=0.0) == 0
        assert process.poll() is None
        process.kill()


def rewrite(directory: Path, **fields: int) -> None:
    """Let the directory's record be another process's."""
    path = directory / orphan_reaper.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_next_run_in_a_directory_ends_what_a_dead_one_left(tmp_path: Path) -> None:
    first = orphan_reaper.acquire(tmp_path)
    with start(first) as process:
        rewrite(tmp_path, pid=dead_pid())
        second = orphan_reaper.acquire(tmp_path)
        assert process.wait(5) == -15
    assert first != second


def test_a_directory_whose_controller_lives_is_refused_and_left_alone(tmp_path: Path) -> None:
    mark = orphan_reaper.acquire(tmp_path)
    with start(mark) as process:
        with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} "):
            orphan_reaper.acquire(tmp_path)
        assert process.poll() is None
        process.kill()


def test_a_directory_that_was_given_up_is_free(tmp_path: Path) -> None:
    orphan_reaper.acquire(tmp_path)
    orphan_reaper.release(tmp_path)
    assert orphan_reaper.acquire(tmp_path)


def test_a_pid_that_was_given_to_another_process_refuses_nobody(tmp_path: Path) -> None:
    orphan_reaper.acquire(tmp_path)
    rewrite(tmp_path, pid=os.getppid(), start=1)
    assert orphan_reaper.acquire(tmp_path)


def dead_pid() -> int:
    with subprocess.Popen(("true",)) as process:
        process.wait()
    return process.pid


def test_a_torn_record_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / orphan_reaper.RECORD).write_text('{"mark": ')
    assert orphan_reaper.acquire(tmp_path)


def test_where_nothing_is_left_two_looks_are_enough(monkeypatch) -> None:
    looks, pauses = [], []
    monkeypatch.setattr(orphan_reaper, "marked", lambda *asked: looks.append(asked) or ())
    monkeypatch.setattr(orphan_reaper.time, "sleep", pauses.append)
    assert orphan_reaper.end_marked(VARIABLE, "nobody's", grace_s=1.0) == 0
    assert (len(looks), len(pauses)) == (2, 1)


def test_one_that_is_dying_is_waited_for_though_its_environment_is_gone(mark: str, monkeypatch) -> None:
    with start(mark, "trap '' TERM; echo up; read _") as process:
        seen = iter([orphan_reaper.marked(VARIABLE, mark)])
        monkeypatch.setattr(orphan_reaper, "marked", lambda *_: next(seen, ()))
        dies = threading.Timer(0.5, process.kill)
        dies.start()
        assert orphan_reaper.end_marked(VARIABLE, mark, grace_s=5.0) == 1
        assert not dies.is_alive(), "it returned before the process was dead"
        monkeypatch.undo()


def test_a_variable_is_read_whole_and_under_its_own_name() -> None:
    values = {"A_NAME": "x=1", "NAME": "two words", "OTHER": ""}
    with subprocess.Popen(("sh", "-c", "echo up; read _"), env=values, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert orphan_reaper._read_variable(process.pid, "NAME") == "two words"
        assert orphan_reaper._read_variable(process.pid, "A_NAME") == "x=1"
        assert orphan_reaper._read_variable(process.pid, "OTHER") == ""
        assert orphan_reaper._read_variable(process.pid, "NAM") == ""
        process.kill()
    assert orphan_reaper._read_variable(process.pid, "NAME") == ""
