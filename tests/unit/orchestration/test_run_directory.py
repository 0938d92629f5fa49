from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.types import JobId, TrialId

CONTROL = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from parsl_rasda.orchestration.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).controlled():
    print("controls", flush=True)
    sys.stdin.read()
"""


def controller(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROL, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "controls\n"
    return process


def claim(directory: Path, **changes: object) -> Path:
    """A controller on another host, as it shows itself."""
    directory.mkdir(exist_ok=True)
    file = directory / "controller.json"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "1", **changes}))
    return file


def test_a_second_controller_is_refused_while_the_first_lives_and_takes_over_when_it_is_dead(
    tmp_path: Path,
) -> None:
    first = controller(tmp_path)
    try:
        with (
            pytest.raises(RunDirectoryError, match=f"process {first.pid} on") as refused,
            RunDirectory(tmp_path).controlled(),
        ):
            pass
        assert "Wait for it, or end it first" in str(refused.value)
    finally:
        first.kill()
        with first:
            pass
    with RunDirectory(tmp_path).controlled():
        assert RunDirectory(tmp_path).controller == f"process {os.getpid()} on {platform.node()}"


def test_a_controller_that_is_dead_but_not_yet_buried_is_dead(tmp_path: Path) -> None:
    """In a container nobody may ever wait for it: a zombie has an entry in /proc all the same."""
    first = controller(tmp_path)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert RunDirectory(tmp_path).controller is None
        with RunDirectory(tmp_path).controlled():
            pass
    finally:
        with first:
            pass


def test_the_same_process_cannot_control_a_directory_twice(tmp_path: Path) -> None:
    run, again = RunDirectory(tmp_path), RunDirectory(tmp_path / "." / "x" / "..")
    (tmp_path / "x").mkdir()
    with run.controlled():
        for same in (run, again):
            with pytest.raises(RunDirectoryError, match="another thread of this process"), same.controlled():
                pass
    assert run.controller is None
    with run.controlled():
        pass


def test_of_many_threads_at_once_one_controls_a_directory_and_the_others_are_refused(tmp_path: Path) -> None:
    claim(tmp_path)
    os.utime(tmp_path / "controller.json", (0, 0))  # of a dead one, which all of them would remove
    together, all_tried = threading.Barrier(8), threading.Barrier(8)

    def control(_: int) -> str:
        together.wait()
        try:
            with RunDirectory(tmp_path).controlled():
                all_tried.wait()
                return "controls"
        except RunDirectoryError as refused:
            all_tried.wait()
            return str(refused)

    with ThreadPoolExecutor(8) as threads:
        first, *others = sorted(threads.map(control, range(8)), key="controls".__ne__)
    assert first == "controls"
    assert all("is being run by another thread of this process" in refusal for refusal in others)
    assert list(tmp_path.iterdir()) == []


def test_a_controller_elsewhere_lives_as_long_as_it_beats(tmp_path: Path) -> None:
    file = claim(tmp_path)
    run = RunDirectory(tmp_path)
    with pytest.raises(RunDirectoryError, match="process 1 on elsewhere"), run.controlled():
        pass
    os.utime(file, (0, 0))
    assert run.controller is None
    os.utime(file)
    assert run.controller is not None
    os.utime(file, (0, 0))
    with run.controlled():
        pass


def test_another_process_with_the_same_number_is_not_the_controller(tmp_path: Path) -> None:
    claim(tmp_path, host=platform.node(), pid=os.getpid(), start="before this process began")
    assert RunDirectory(tmp_path).controller is None


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
def test_a_claim_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    claim(tmp_path).write_text(content)
    with RunDirectory(tmp_path).controlled():
        pass


def test_a_beat_without_a_claim_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="taken over"):
        RunDirectory(tmp_path).beat()
    assert list(tmp_path.iterdir()) == []


def test_attempts_have_directories_of_their_own(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.attempt(JobId(TrialId("0003"), 2)) == tmp_path / "trials/0003/attempt-2"
    assert run.attempt(JobId(TrialId("0003"), 2), Path("/scratch")) == Path("/scratch/trials/0003/attempt-2")


def test_a_controller_that_was_taken_over_notices_and_leaves_the_claim_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with directory.controlled():
        other = json.dumps({"host": "elsewhere", "pid": 1, "start": "1"})
        (tmp_path / "controller.json").unlink()
        (tmp_path / "controller.json").write_text(other)
        for act in (directory.verify, directory.beat):
            with pytest.raises(RunDirectoryError, match="taken over by process 1 on elsewhere"):
                act()
    assert (tmp_path / "controller.json").read_text() == other
