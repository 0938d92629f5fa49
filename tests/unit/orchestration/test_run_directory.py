from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from parsl_rasda.atomic_files import create_file
from parsl_rasda.errors import RunCancelledError, RunDirectoryError
from parsl_rasda.orchestration import controllers
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.types import JobId, TrialId

CONTROL = """
import sys
from pathlib import Path
from parsl_rasda.orchestration.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).controlled():
    print("controls", flush=True)
    sys.stdin.read()
"""


def controller(directory: Path, *around: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*around, sys.executable, "-c", CONTROL, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "controls\n"
    return process


def claim(directory: Path, number: int = 1, **changes: object) -> Path:
    """The claim of a controller on another host."""
    file = directory / "controllers" / f"{number:06}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    there = {"host": "elsewhere", "boot": "its own", "pids": "pid:[1]", "pid": 1, "start": "1"}
    file.write_text(json.dumps(there | changes))
    return file


def old_claim(directory: Path, **changes: object) -> Path:
    """A controller of 0.1.0, on another host."""
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


def test_a_controller_that_waits_for_its_turn_is_cancelled_with_the_one_it_waits_for(tmp_path: Path) -> None:
    """Else `cancel` would end the first, and a job that waits would go on with the study."""
    run, looks = RunDirectory(tmp_path), list[float]()
    with controller(tmp_path) as first:

        def cancel_then_end(pause_s: float) -> None:
            looks.append(pause_s)
            run.tell_to_end()
            first.kill()
            first.wait()

        with pytest.raises(RunCancelledError, match="was cancelled") as ended:
            run.await_end(cancel_then_end)
    assert (ended.value.exit_code, len(looks)) == (143, 1)
    run.await_end(cancel_then_end)
    assert len(looks) == 1, "whoever comes after that goes on at once"


def test_a_controller_that_comes_after_a_cancel_waits_for_the_end_and_goes_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with controller(tmp_path) as first:
        run.tell_to_end()

        def end(_: float) -> None:
            first.kill()
            first.wait()

        run.await_end(end)
    assert run.controller is None


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
    os.utime(claim(tmp_path), (0, 0))  # of a dead one, whose place all of them would take
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
    assert RunDirectory(tmp_path).controller is None


@pytest.mark.parametrize("made", [claim, old_claim])
def test_a_controller_elsewhere_lives_as_long_as_it_renews_its_lease(
    tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    file = made(tmp_path)
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
    with RunDirectory(tmp_path).controlled():
        ours = json.loads((tmp_path / "controllers" / "000001.json").read_text())
    claim(tmp_path, 2, **{**ours, "start": "before this process began"})
    assert RunDirectory(tmp_path).controller is None
    claim(tmp_path, 2, **{**ours, "boot": "another", "start": "before this process began"})
    assert RunDirectory(tmp_path).controller is not None, "of another boot, only the lease is known"


def test_another_process_of_an_earlier_version_is_not_the_controller(tmp_path: Path) -> None:
    old_claim(tmp_path, host=platform.node(), pid=os.getpid(), start="before this process began")
    assert RunDirectory(tmp_path).controller is None


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "{}", '{"host": 1, "pid": "x", "start": []}'])
@pytest.mark.parametrize("made", [claim, old_claim])
def test_a_claim_that_cannot_be_read_is_none(
    tmp_path: Path, content: str, made: Callable[[Path], Path]
) -> None:
    file = made(tmp_path)
    file.write_text(content)
    os.utime(file, (0, 0))
    with RunDirectory(tmp_path).controlled():
        pass


def test_a_run_without_a_claim_is_nobodys(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="taken over"):
        RunDirectory(tmp_path).verify()
    assert list(tmp_path.iterdir()) == []


RACE = """
import os, sys
from pathlib import Path
from parsl_rasda.atomic_files import create_file
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.run_directory import RunDirectory
say = lambda word: print(word, flush=True)
say("ready")
for line in sys.stdin:
    try:
        with RunDirectory(Path(line.strip())).controlled():
            say("inside")
            sys.stdin.readline()
    except RunDirectoryError:
        say("refused")
        sys.stdin.readline()
    say("left")
"""


@pytest.mark.slow
def test_of_eight_processes_that_claim_a_stale_lock_at_once_one_gets_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(8)
        ]

        def tell(line: str) -> list[str]:
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(line + "\n")
                racer.stdin.flush()
            return heard()

        def heard() -> list[str]:
            return sorted(racer.stdout.readline().strip() for racer in racers if racer.stdout)

        assert heard() == ["ready"] * 8
        for round_ in range(60):
            directory = tmp_path / str(round_)
            os.utime((claim, old_claim)[round_ % 2](directory), (0, 0))
            assert tell(str(directory)) == ["inside"] + ["refused"] * 7, round_
            assert tell("") == ["left"] * 8
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()


def test_whoever_finds_a_dead_controller_does_not_end_the_one_that_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(claim(tmp_path), (0, 0))
    quicker: list[subprocess.Popen[str]] = []

    def create(file: Path, content: str) -> bool:
        quicker.extend([] if quicker else [controller(tmp_path)])
        return create_file(file, content)

    monkeypatch.setattr(controllers, "create_file", create)
    with (
        pytest.raises(RunDirectoryError, match="is being run by process"),
        RunDirectory(tmp_path).controlled(),
    ):
        pass
    assert RunDirectory(tmp_path).controller == f"process {quicker[0].pid} on {platform.node()}"
    with quicker[0]:
        quicker[0].kill()


_MAY_UNSHARE = shutil.which("unshare") is not None and os.geteuid() == 0
in_a_container = pytest.mark.skipif(not _MAY_UNSHARE, reason="only root may make a PID namespace")


@in_a_container
def test_a_claim_from_a_container_finds_the_controller_outside_by_its_lease(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).controlled():
        inside = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", CONTROL, str(tmp_path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"is being run by process {os.getpid()} on" in inside.stderr
        RunDirectory(tmp_path).verify()


@in_a_container
def test_a_controller_in_a_container_is_found_outside_by_its_lease(tmp_path: Path) -> None:
    around = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with controller(tmp_path, *around) as inside:
        with (
            pytest.raises(RunDirectoryError, match="is being run by process"),
            RunDirectory(tmp_path).controlled(),
        ):
            pass
        inside.kill()
        inside.wait()  # else it may see its input end first
    assert RunDirectory(tmp_path).controller is not None, "who has died there cannot be told yet"
    os.utime(tmp_path / "controllers" / "000001.json", (0, 0))
    with RunDirectory(tmp_path).controlled():
        assert RunDirectory(tmp_path).controller == f"process {os.getpid()} on {platform.node()}"


def test_a_lease_is_renewed_until_the_controller_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = threading.Event()
    real = os.utime

    def utime(file: Path) -> None:
        real(file)
        renewed.set()

    monkeypatch.setattr(controllers, "RENEWAL_S", 0.01)
    with RunDirectory(tmp_path).controlled():
        monkeypatch.setattr("parsl_rasda.orchestration.controllers.os.utime", utime)
        file = tmp_path / "controllers" / "000001.json"
        real(file, (0, 0))
        renewed.clear()
        assert renewed.wait(10.0)
        assert file.stat().st_mtime > 0
    assert file.read_bytes() == b"", "a copy of the run is nobody's either"


def test_a_lease_is_measured_by_the_time_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path)
    for skew_s in (-1e6, 1e6):
        monkeypatch.setattr("time.time", lambda skew_s=skew_s: skew_s)
        assert RunDirectory(tmp_path).controller is not None


def test_attempts_have_directories_of_their_own(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.attempt(JobId(TrialId("0003"), 2)) == tmp_path / "trials/0003/attempt-2"
    assert run.attempt(JobId(TrialId("0003"), 2), Path("/scratch")) == Path("/scratch/trials/0003/attempt-2")


def test_a_controller_that_was_taken_over_notices_and_leaves_the_claim_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with directory.controlled():
        theirs = claim(tmp_path, 2)
        before = theirs.read_text()
        with pytest.raises(RunDirectoryError, match="taken over by process 1 on elsewhere"):
            directory.verify()
    assert theirs.read_text() == before
