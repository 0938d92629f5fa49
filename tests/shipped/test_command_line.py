"""The console script as users have it: a process of its own, its streams and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("parsl-rasda")
ROOT = Path(__file__).parents[2]

STUDY = """
name: small
with: {epoch_s: 0.1}
tune:
  metric: val_loss
  num_samples: 4
  scheduler: {max_t: 4, max_workers: 2}
  search_space: {lr: {float: [0.001, 0.1]}}
  training: {python: workflows.emulated.train:train}
  estimates: {epoch_s: 0.1, restart_s: 0.1, efficiency: 0.9}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: none\nmpi_launcher: process\ngpus_per_node: 4\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "site.yaml").write_text(SITE)
    return tmp_path


def rasda(folder: Path, *words: str, code: int = 0) -> tuple[str, str]:
    """Run a command in a folder, check its exit code, and return stdout and stderr."""
    done = subprocess.run(
        [PROGRAM, *words], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def seconds_of(*words: str) -> float:
    """Return the processor time of a command: other work on the machine does not count."""
    before = os.times()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_answers_in_less_than_half_a_second() -> None:
    seconds_of(str(PROGRAM), "--help")  # the first start writes byte code
    assert min(seconds_of(str(PROGRAM), "--help") for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "words", [("--help",), ("validate", "study.yaml"), ("plan", "study.yaml", "--site", "site.yaml")]
)
def test_nothing_heavy_is_imported_before_it_is_needed(folder, words) -> None:
    probe = (
        "import sys\nfrom parsl_rasda.cli.main import main\nsys.argv = ['parsl-rasda', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'parsl', 'optuna', 'globus_compute_sdk'}\n"
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip() == ""


def test_every_command_has_help_and_the_version_is_told(tmp_path) -> None:
    out, _ = rasda(tmp_path, "--help")
    for command in (
        "init",
        "explain",
        "schema",
        "validate",
        "doctor",
        "plan",
        "run",
        "resume",
        "status",
        "watch",
        "report",
        "export",
    ):
        assert f"\n  {command} " in out
        assert "Usage: parsl-rasda" in rasda(tmp_path, command, "--help")[0]
    assert rasda(tmp_path, "--version")[0].startswith("parsl-rasda ")


def test_from_init_to_plan_without_a_file_of_ones_own(tmp_path) -> None:
    rasda(tmp_path, "init", "mine")
    rasda(tmp_path, "validate", "mine/study.yaml", "--site", "mine/site.yaml")
    out, _ = rasda(tmp_path, "plan", "mine/study.yaml", "--json", "--site", "local")
    assert json.loads(out)["study"] == "mine"


def test_wrong_input_is_one_message_and_exit_code_2(folder) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("max_t: 4", "max_t: four").replace("mode", "modus"))
    out, err = rasda(folder, "run", "study.yaml", "--site", "nowhere", code=2)
    assert out == ""
    assert "Traceback" not in err
    assert "study.yaml:7" in err
    assert "no site of that name" in err
    assert not (folder / "runs").exists()


def test_a_directory_that_is_not_a_run_is_exit_code_2(tmp_path) -> None:
    for command in ("status", "watch", "report", "resume", "export --to csv"):
        _, err = rasda(tmp_path, *command.split(), ".", code=2)
        assert "is not a run directory" in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("run", "study.yaml", "--site", "site.yaml", "--dir", "taken"), "File exists"),
        (("run", "study.yaml", "--site", "site.yaml", "--dir", "taken/below"), "Not a directory"),
        (("run", "study.yaml", "--site", "site.yaml", "--dir", "/proc/rasda"), "No such file or directory"),
        (("init", "taken"), "File exists"),
        (("init", "/proc/rasda"), "No such file or directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_message_and_exit_code_2(folder, words, reason) -> None:
    (folder / "taken").write_text("mine")
    _, err = rasda(folder, *words, code=2)
    (message,) = err.splitlines()
    assert message.startswith("parsl-rasda: ")
    assert f"{words[-1]}: " in message
    assert message.endswith(reason)


def test_a_run_directory_with_a_blank_is_refused_before_anything_starts(folder) -> None:
    _, err = rasda(folder, "run", "study.yaml", "--site", "site.yaml", "--dir", "my runs", code=2)
    (message,) = err.splitlines()
    assert "my runs: has ' ' in its path" in message
    assert not (folder / "my runs" / "journal.jsonl").exists()
    assert not (folder / "my runs" / "runners").exists()


def test_a_reader_that_leaves_early_ends_a_command_quietly(folder) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [PROGRAM, "validate", "study.yaml"]
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            words, cwd=folder, stdout=nobody, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.stderr == b""


@pytest.mark.parsl
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_commands_whose_standard_streams_are_closed_do_their_work(folder, closed) -> None:
    for words in ("validate study.yaml", "run study.yaml --site site.yaml --dir out", "status out"):
        shell = ["/bin/sh", "-c", f"{PROGRAM} {words} {closed}"]
        assert subprocess.run(shell, cwd=folder, timeout=240, check=False).returncode == 0, words
    assert "done" in rasda(folder, "status", "out")[0]


def test_a_run_tells_its_result_on_stdout_and_its_decisions_on_stderr(folder) -> None:
    out, err = rasda(folder, "run", "study.yaml", "--site", "site.yaml", "--json")
    document = json.loads(out)
    assert document["state"] == "done"
    assert document["trials"]["total"] == 4
    assert document["best"]["config"]["lr"] > 0
    assert sum(" started trial=" in line for line in err.splitlines()) == 4
    directory = folder / "runs" / "small"
    assert document["directory"] == "runs/small"

    status = json.loads(rasda(folder, "status", "runs/small", "--json")[0])
    same = ("study", "state", "best", "trials", "makespan_s", "gpu_busy_fraction", "restarts", "faults")
    assert {k: status[k] for k in same} == {k: document[k] for k in same}

    out, _ = rasda(folder, "report", "runs/small")
    assert "wrote runs/small/results.csv" in out
    assert len((directory / "results.csv").read_text().splitlines()) == 5

    (planned,) = json.loads(
        rasda(folder, "plan", "study.yaml", "--site", "site.yaml", "--from", "runs/small", "--json")[0]
    )["stages"]
    predicted = next(p["makespan_s"] for p in planned["policies"] if p["is_declared"])
    assert predicted == pytest.approx(document["makespan_s"], rel=0.15)

    again, _ = rasda(folder, "run", "study.yaml", "--site", "site.yaml", "--json")
    assert json.loads(again)["epochs"] == document["epochs"], "running it again repeats nothing"

    out, _ = rasda(folder, "resume", "runs/small", "--set", "tune.num_samples=6", "--json")
    assert json.loads(out)["trials"]["total"] == 6


@pytest.mark.parsl
def test_a_study_without_one_successful_trial_is_exit_code_3(folder) -> None:
    broken = STUDY.replace("search_space: {", "search_space: {fault: raise, ")
    (folder / "study.yaml").write_text(broken)
    out, err = rasda(folder, "run", "study.yaml", "--site", "site.yaml", code=3)
    assert "finished without a successful trial" in out
    assert "EmulatedFaultError" in out
    assert " failed trial=" in err


@pytest.mark.parsl
def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(folder) -> None:
    long = ["--set", "with.epoch_s=5", "--set", "tune.scheduler.max_t=64"]
    words = [PROGRAM, "run", "study.yaml", "--site", "site.yaml", *long]
    with subprocess.Popen(
        words, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        begin = time.monotonic()
        for line in process.stderr:
            if " started trial=" in line:
                break
            assert time.monotonic() - begin < 120
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "Resume with: parsl-rasda resume runs/small" in err
    assert "interrupted" in out
    assert json.loads(rasda(folder, "status", "runs/small", "--json")[0])["state"] == "interrupted"
