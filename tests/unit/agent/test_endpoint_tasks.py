"""What the site's disk decides: who runs an attempt, who is too late, and when one is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backend_tools import eventually

from parsl_rasda.agent import endpoint_tasks, orphan_reaper, pilot_lease
from parsl_rasda.atomic_files import create_file
from parsl_rasda.protocol import JobSpec, read_report
from parsl_rasda.types import Outcome, TrialId

PYTHON = sys.executable


def order_at(directory: Path, attempt: int = 1) -> JobSpec:
    return JobSpec(
        study="s",
        trial=TrialId("0000"),
        attempt=attempt,
        config={},
        directory=str(directory),
        seed=1,
        metric="loss",
        mode="min",
        epoch=0,
        until=1,
        max_epochs=1,
        schedule=((0, 1),),
        world_size=1,
        accelerator="none",
    )


def sender(folder: Path, term: int) -> dict[str, Any]:
    return {"folder": str(folder), "mark": f"run-{folder}".replace("/", "-"), "term": term}


def run(directory: Path, script: str = "pass", term: int = 1) -> dict[str, Any]:
    order = order_at(directory).to_json()
    launch = {"argv": [PYTHON, "-c", script], "environment": {}, "files": {}}
    by = sender(directory.parents[2], term)
    (state,) = endpoint_tasks.run(order, launch, f"mark/{directory}", by, [], grace_s=0.2)["jobs"]
    found: dict[str, Any] = state
    return found


def poll(directory: Path, **fields: Any) -> dict[str, Any]:
    asked = {"directory": str(directory), "job": "0000.1", "epoch": 0, "mark": f"mark/{directory}"}
    (state,) = endpoint_tasks.poll([{**asked, "stop": None, "abandon": None, **fields}], silence_s=1.0)[
        "jobs"
    ]
    found: dict[str, Any] = state
    return found


def test_a_task_that_is_delivered_twice_runs_once(tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    run(tmp_path / "a", script)
    run(tmp_path / "a", script)
    assert (tmp_path / "count").read_text() == "x"


def test_an_attempt_that_was_told_to_stop_never_begins(tmp_path: Path) -> None:
    told = poll(tmp_path / "a", stop="stopped")
    assert told["report"]["outcome"] == Outcome.PREEMPTED
    state = run(tmp_path / "a", f"open({str(tmp_path / 'began')!r}, 'w')")
    assert state["report"]["outcome"] == Outcome.PREEMPTED
    assert not (tmp_path / "began").exists()


def test_an_attempt_that_nobody_claimed_is_lost_and_stays_so_when_its_task_comes_late(tmp_path: Path) -> None:
    assert poll(tmp_path / "a")["report"] is None, "it may still come"
    state = poll(tmp_path / "a", abandon="no worker took it")
    assert state["report"]["outcome"] == Outcome.LOST
    assert "no worker took it" in state["report"]["cause"]
    late = run(tmp_path / "a", f"open({str(tmp_path / 'began')!r}, 'w')")
    assert late["report"]["outcome"] == Outcome.LOST
    assert not (tmp_path / "began").exists()


def test_a_silent_attempt_is_over_and_what_wakes_up_later_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    (directory / "claim").touch()
    (directory / "heartbeat").write_text(str(time.time() - 5))
    state = poll(directory)
    assert state["report"]["outcome"] == Outcome.LOST
    assert "silent" in state["report"]["cause"]
    assert (directory / "stop").exists(), "ranks that wake up leave at their next step"
    create_file(directory / "report.json", '{"outcome": "reached"}')
    report = read_report(directory, order_at(directory).job)
    assert report is not None
    assert report.outcome is Outcome.LOST, "the first report stands"


def test_an_attempt_that_lives_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    (directory / "claim").touch()
    (directory / "heartbeat").write_text(str(time.time()))
    assert poll(directory, abandon="its future failed")["report"] is None
    assert not (directory / "stop").exists()


@pytest.mark.slow
def test_ranks_that_do_not_heed_the_stop_file_are_ended(tmp_path: Path) -> None:
    script = (
        "import signal, time; from pathlib import Path\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"Path({str(tmp_path / 'a' / 'stop')!r}).write_text('stopped')\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    state = run(tmp_path / "a", script)
    assert time.monotonic() - began < 20
    assert state["report"]["outcome"] == Outcome.PREEMPTED
    assert "did not end in time" in state["report"]["cause"]


def attempt_at(folder: Path, claim: str, silent_s: float = 60.0) -> Path:
    directory = folder / "trials" / "0000" / "attempt-1"
    directory.mkdir(parents=True)
    (directory / "claim").write_text(claim)
    (directory / "heartbeat").write_text(str(time.time() - silent_s))
    return directory


def test_a_handshake_stops_what_was_sent_before_it(tmp_path: Path) -> None:
    directory = attempt_at(tmp_path, claim="1")
    assert endpoint_tasks.describe("none", sender(tmp_path, 2))["nodes"]
    assert (directory / "stop").exists()


@pytest.mark.parametrize("term", [1, 2, 3])
def test_a_handshake_that_is_delivered_again_or_late_leaves_alone_what_came_after(
    tmp_path: Path, term: int
) -> None:
    directory = attempt_at(tmp_path, claim="3", silent_s=0.0)
    endpoint_tasks.describe("none", sender(tmp_path, term))
    assert not (directory / "stop").exists()


def test_a_handshake_ends_the_processes_of_earlier_terms_only(tmp_path: Path) -> None:
    def start(term: int) -> subprocess.Popen[bytes]:
        mark = endpoint_tasks.TaskContext(**sender(tmp_path, term)).process_mark
        environment = {**os.environ, orphan_reaper.RUN_VARIABLE: mark}
        return subprocess.Popen([PYTHON, "-c", "import time; time.sleep(60)"], env=environment)

    earlier, ours = start(9), start(10)
    try:
        assert endpoint_tasks.describe("none", sender(tmp_path, 10))["ended"] == 1
        assert earlier.wait(10) != 0
        assert ours.poll() is None
    finally:
        for process in (earlier, ours):
            process.kill()
            process.wait()


def test_a_task_of_an_earlier_term_does_not_begin(tmp_path: Path) -> None:
    endpoint_tasks.describe("none", sender(tmp_path, 2))
    directory = tmp_path / "trials" / "0000" / "attempt-1"
    state = run(directory, f"open({str(tmp_path / 'began')!r}, 'w')", term=1)
    assert state["report"]["outcome"] == Outcome.PREEMPTED
    assert not (tmp_path / "began").exists()


def test_a_task_for_another_pilot_does_not_begin_and_says_which_one_it_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    order, launch = order_at(tmp_path / "a").to_json(), {"argv": ["false"], "environment": {}, "files": {}}
    by = {**sender(tmp_path, 1), "block": "17"}
    assert endpoint_tasks.run(order, launch, "mark", by, [], grace_s=0.2) == {"block": "18", "jobs": []}
    assert not (tmp_path / "a").exists()


@pytest.fixture
def pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give this process the environment of a worker, in a pilot of that name."""
    monkeypatch.setattr(pilot_lease, "FOLDER", tmp_path / "claims")
    monkeypatch.setenv("PARSL_WORKER_POOL_ID", "pool")
    return "pool"


def test_a_pilot_that_another_run_uses_is_said_to_be_taken_and_no_job_begins(
    tmp_path: Path, pilot: str
) -> None:
    assert not pilot_lease.acquire(pilot, "theirs", "heat")
    words = "another study (heat, run theirs) uses this pilot"
    assert endpoint_tasks.describe("none", sender(tmp_path, 1))["taken"] == words
    order, launch = order_at(tmp_path / "a").to_json(), {"argv": ["false"], "environment": {}, "files": {}}
    told = endpoint_tasks.run(order, launch, "mark", sender(tmp_path, 1), [], grace_s=0.2)
    assert told == {"block": pilot, "jobs": [], "taken": words}
    assert not (tmp_path / "a").exists()
    endpoint_tasks.clean_up("theirs")
    assert not endpoint_tasks.describe("none", sender(tmp_path, 1))["taken"], "its last word gave it up"


def test_pilots_of_one_machine_without_a_batch_system_are_one_runs(
    tmp_path: Path, pilot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a pilot of its own there, by `study: NAME`, would count the same GPUs."""
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    theirs = endpoint_tasks.TaskContext(str(tmp_path), "theirs", 1, study="heat", accelerator="cuda")
    assert not theirs.lease_pilot()
    monkeypatch.setenv("PARSL_WORKER_POOL_ID", "another pool")
    ours = endpoint_tasks.TaskContext(str(tmp_path), "ours", 1, accelerator="cpu")
    words = "another study (heat, run theirs) uses the GPUs or cores of this machine"
    assert ours.lease_pilot() == words
    assert not replace(ours, accelerator="none").lease_pilot(), "logical slots are nobody's"
    assert not replace(ours, run="theirs").lease_pilot(), "another endpoint of the same run"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert not ours.lease_pilot(), "a batch system gives no GPU to two jobs"
    monkeypatch.delenv("SLURM_JOB_ID")
    endpoint_tasks.clean_up("theirs")
    assert not ours.lease_pilot()


@pytest.mark.usefixtures("pilot")
@pytest.mark.parametrize(("state", "outcome"), [("CANCELLED", Outcome.PREEMPTED), ("RUNNING", Outcome.LOST)])
def test_ranks_that_die_with_a_cancelled_pilot_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, outcome: Outcome
) -> None:
    """scancel ends the steps of a job before the task that watches over them."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho JobId=17 JobState={state} Reason=None Restarts=0 ExitCode=0:15\n")
    scontrol.chmod(0o700)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    told = run(tmp_path / "trials" / "0000" / "attempt-1", "import os; os.kill(os.getpid(), 15)")
    assert told["report"]["outcome"] == outcome
    assert ("it was cancelled" in told["report"]["cause"]) is (outcome is Outcome.PREEMPTED)


@pytest.mark.parametrize(
    ("block", "outcome"), [("", Outcome.LOST), ("pool", Outcome.LOST), ("before it", Outcome.PREEMPTED)]
)
def test_who_fell_silent_with_its_pilot_is_not_to_blame(
    tmp_path: Path, pilot: str, monkeypatch: pytest.MonkeyPatch, block: str, outcome: Outcome
) -> None:
    for name in ("SLURM_JOB_ID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    (directory := tmp_path / "a").mkdir()
    (directory / endpoint_tasks.CLAIM).write_text("1")
    asked = {"directory": str(directory), "job": "0000.1", "epoch": 0, "mark": "m"}
    told = endpoint_tasks.poll([{**asked, "stop": None, "abandon": None}], -1.0, block)
    assert told["block"] == pilot
    assert told["jobs"][0]["report"]["outcome"] == outcome


@pytest.mark.slow
@pytest.mark.usefixtures("pilot")
def test_a_job_holds_its_pilot_and_ends_where_another_run_has_got_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is so short that each beat of the job comes too late, as if its node slept."""
    monkeypatch.setattr(pilot_lease, "LEASE_S", 0.0)
    directory, began = tmp_path / "trials" / "0000" / "attempt-1", tmp_path / "began"
    script = f"import time; open({str(began)!r}, 'w'); time.sleep(60)"
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run, directory, script)
        eventually(began.exists)
        monkeypatch.setattr(pilot_lease, "LEASE_S", 60.0)
        eventually(lambda: not pilot_lease.acquire("pool", "theirs", "heat"))
        state = running.result(30)
    assert state["report"]["outcome"] == Outcome.PREEMPTED
    assert "another study (heat, run theirs) uses this pilot" in state["report"]["cause"]


def test_an_attempt_whose_input_is_not_there_does_not_begin(tmp_path: Path) -> None:
    order = replace(order_at(tmp_path / "a"), paths=(("data", str(tmp_path / "data")),))
    launch = {"argv": [PYTHON, "-c", "pass"], "environment": {}, "files": {}}
    arguments = (order.to_json(), launch, "mark", sender(tmp_path, 1), [])
    told = endpoint_tasks.run(*arguments, grace_s=0.2)
    assert (told["jobs"], told["unfit"]) == ([], f"input 'data' cannot be found there: {tmp_path / 'data'}")
    assert not (tmp_path / "a").exists()
    (tmp_path / "data").touch()
    assert endpoint_tasks.run(*arguments, grace_s=0.2)["jobs"], "once it is there"


@pytest.mark.parametrize("call", ["describe", "run", "poll", "stage"])
def test_every_call_is_known(call: str) -> None:
    with pytest.raises(TypeError):
        endpoint_tasks.answer(call, {})


def call(folder: Path, target: str, *arguments: Any) -> dict[str, Any] | None:
    return endpoint_tasks.stage(str(folder / "0"), "me", target, list(arguments))


def test_a_stage_runs_once_however_often_its_task_comes(tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    assert call(tmp_path / "c", "os:mkdir", made) == {"result": None}
    assert call(tmp_path / "c", "os:mkdir", made) == {"result": None}, "from the disk"
    (state,) = endpoint_tasks.poll_stages([str(tmp_path / "c" / "0")])
    assert state["answered"]


def test_a_stage_that_another_task_is_at_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "c" / "0").mkdir(parents=True)
    (tmp_path / "c" / "0" / "claim").touch()
    assert call(tmp_path / "c", "os:mkdir", str(tmp_path / "made")) is None
    (state,) = endpoint_tasks.poll_stages([str(tmp_path / "c" / "0")])
    assert not state["answered"]
    assert state["silent_s"] is not None
    assert endpoint_tasks.poll_stages([str(tmp_path / "other")])[0]["silent_s"] is None
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("target", "cause"),
    [("math:nothing", "AttributeError"), ("uuid:uuid4", "TypeError: Object of type UUID")],
)
def test_a_stage_that_fails_says_why(tmp_path: Path, target: str, cause: str) -> None:
    found = call(tmp_path / "c", target)
    assert found is not None
    assert cause in found["cause"]


SLOW = """
import sys
from parsl_rasda.agent import stage_calls
stage_calls.stage(sys.argv[1], "me", "os:system", [f"touch {sys.argv[1]}/begun; sleep 60"])
"""


def start_slow(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([PYTHON, "-c", SLOW, str(folder)])
    eventually((folder / "begun").exists)
    return process


@pytest.mark.slow
def test_a_stage_that_is_told_to_stop_ends(tmp_path: Path) -> None:
    process = start_slow(tmp_path / "0")
    endpoint_tasks.stop_stages([str(tmp_path / "0")], "the controller left")
    assert process.wait(20) == 1
    assert endpoint_tasks.stage(str(tmp_path / "0"), "me", "os:getpid", []) == {
        "cause": "the controller left"
    }


@pytest.mark.slow
def test_a_stage_that_is_begun_again_waits_until_the_one_before_has_ended(tmp_path: Path) -> None:
    process = start_slow(tmp_path / "0")
    assert endpoint_tasks.stage(str(tmp_path / "1"), "me", "operator:add", [1, 2]) == {"result": 3}
    assert process.wait(1) == 1
    late = endpoint_tasks.stage(str(tmp_path / "0"), "me", "os:mkdir", [str(tmp_path / "made")])
    assert late == {"cause": "it was begun again"}
    assert not (tmp_path / "made").exists()
