"""Stages around a search: order, fan-out, results that stand, and failures in words."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from backend_tools import eventually
from command_line import finish, start

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

STUDY = """
name: steps
seed: 1
stages:
  simulate:
    python: simulating:simulate
    for_each: {seed: [0, 1]}
  count:
    command: [sh, -c, "echo {points} > count.txt; echo called >> ../../../../calls-count"]
    with: {points: 3}
  prepare:
    python: preparing:prepare
    needs: {fields: simulate, counted: count}
  tune:
    needs: {data: prepare}
    with: {epoch_s: 0.05}
    tune:
      metric: val_loss
      num_samples: 3
      scheduler: {max_t: 2, max_workers: 2}
      search_space: {lr: {float: [0.001, 0.1], log: true}}
      training: {python: "workflows.emulated.train:train"}
  evaluate:
    python: evaluating:evaluate
    needs: {best: tune, data: prepare}
"""

MODULES = {
    "simulating.py": """
from pathlib import Path
def simulate(seed, directory):
    with (Path(directory).parents[3] / "calls-simulate").open("a") as log: log.write(f"{seed}\\n")
    (Path(directory) / "field.txt").write_text(str(seed))
    return Path(directory) / "field.txt"
""",
    "preparing.py": """
import os, time
from pathlib import Path
def prepare(fields, counted, directory):
    with (Path(directory).parents[3] / "calls-prepare").open("a") as log: log.write("x\\n")
    count = (Path(counted) / "count.txt").read_text().strip()
    return {"sum": sum(int(Path(f).read_text()) for f in fields), "count": count}
""",
    "evaluating.py": """
from pathlib import Path
def evaluate(best, data, directory):
    with (Path(directory).parents[3] / "calls-evaluate").open("a") as log: log.write("x\\n")
    return {"trial": best["trial"], "data": data}
""",
}

SITE = """
provider: {type: LocalProvider}
accelerator: none
mpi_launcher: process
gpus_per_node: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "logical.yaml").write_text(SITE)
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    return finish(start(folder, *(words or ("run", "study.yaml", "--site", "logical.yaml", "--dir", "out"))))


def calls(folder: Path) -> dict[str, int]:
    return {
        name: len(file.read_text().splitlines()) if (file := folder / f"calls-{name}").exists() else 0
        for name in ("simulate", "count", "prepare", "evaluate")
    }


def test_results_stand_until_their_code_changes_and_exactly_what_depends_on_it_runs_again(
    folder: Path,
) -> None:
    # Interrupted as soon as `prepare` is done ...
    process = start(folder, "run", "study.yaml", "--site", "logical.yaml", "--dir", "out")
    eventually((folder / "out/stages/prepare/0000.json").exists, deadline_s=60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert calls(folder) == {"simulate": 2, "count": 1, "prepare": 1, "evaluate": 0}
    # ... and run again: neither `simulate` nor `prepare` is repeated.
    code, _, err = run(folder)
    assert code == 0, err
    assert calls(folder) == {"simulate": 2, "count": 1, "prepare": 1, "evaluate": 1}
    kept = json.loads((folder / "out/stages/evaluate/0000.json").read_text())["result"]
    assert kept["data"] == {"sum": 1, "count": "3"}
    # Once more: everything stands.
    assert run(folder, "resume", "out")[0] == 0
    assert calls(folder) == {"simulate": 2, "count": 1, "prepare": 1, "evaluate": 1}
    # A comment changes nothing; the code of `evaluate`, or an argument: only it is called again.
    (folder / "preparing.py").write_text("# Shards.\n" + MODULES["preparing.py"])
    (folder / "evaluating.py").write_text(MODULES["evaluating.py"].replace("best[", "dict(best)["))
    assert run(folder)[0] == 0
    assert calls(folder) == {"simulate": 2, "count": 1, "prepare": 1, "evaluate": 2}
    # The code of `prepare` changes: what depends on it runs again, if it is not only to go on.
    (folder / "preparing.py").write_text(MODULES["preparing.py"].replace("sum(", "7 + sum("))
    code, _, err = run(folder, "resume", "out")
    assert code == 2
    assert "begun with other inputs" in err
    code, _, err = run(folder)
    assert code == 0, err
    assert calls(folder) == {"simulate": 2, "count": 1, "prepare": 2, "evaluate": 3}
    kept = json.loads((folder / "out/stages/evaluate/0000.json").read_text())["result"]
    assert kept["data"] == {"sum": 8, "count": "3"}
    assert (folder / "out/before/1/journal.jsonl").exists(), "the search before is kept"
    # One more simulation: the others stand.
    (folder / "study.yaml").write_text(STUDY.replace("seed: [0, 1]", "seed: [5, 0, 1]"))
    assert run(folder)[0] == 0
    assert calls(folder) == {"simulate": 3, "count": 1, "prepare": 3, "evaluate": 4}


def test_a_stage_that_raises_is_named_with_its_line_and_resume_goes_on_after_the_repair(folder: Path) -> None:
    (folder / "preparing.py").write_text(
        "def prepare(fields, counted):\n    raise ValueError('no field holds data')\n"
    )
    code, out, err = run(folder, "run", "study.yaml", "--site", "logical.yaml", "--dir", "out", "--json")
    assert code == 3
    cause = "ValueError: no field holds data (preparing.py:2)"
    assert f"Stage 'prepare' failed: {cause}" in err
    assert "Resume with: parsl-rasda resume out" in err
    document = json.loads(out)
    assert (document["state"], document["cause"]) == ("failed", f"stage prepare: {cause}")
    states = {name: stage["state"] for name, stage in document["stages"].items()}
    waiting = dict.fromkeys(("tune", "evaluate"), "waiting")
    assert states == {"simulate": "done", "count": "done", "prepare": "failed", **waiting}
    assert run(folder, "status", "out", "--json") == (0, out, ""), "one document, whoever prints it"
    for command in ("status", "report", "watch"):
        code, told, err = run(folder, command, "out")
        assert (code, err) == (0, "")
        assert cause in told
    (folder / "preparing.py").write_text(MODULES["preparing.py"])
    code, _, err = run(folder, "resume", "out")
    assert code == 0, err
    assert calls(folder)["simulate"] == 2
    document = json.loads(run(folder, "status", "out", "--json")[1])
    assert (document["state"], document["cause"]) == ("done", "")
    assert document["stages"]["evaluate"]["result"]["trial"] == document["best"]["trial"]


def test_a_site_that_refuses_is_exit_code_4_with_its_words_in_the_document(folder: Path) -> None:
    site = "provider: {type: SlurmProvider}\naccelerator: none\nmpi_launcher: process\ngpus_per_node: 2\n"
    site += "address: 127.0.0.1\n"
    (folder / "refusing.yaml").write_text(site)
    for command in ("sbatch", "sacct", "squeue"):
        script = folder / "bin" / command
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\necho sbatch: error: invalid account >&2; exit 1\n")
        script.chmod(0o755)
    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    words = ("run", "study.yaml", "--site", "refusing.yaml", "--dir", "out", "--json")
    code, out, err = finish(start(folder, *words, environment=path))
    assert code == 4, err
    document = json.loads(out)
    assert document["state"] == "no_site"
    assert document["cause"].count("Site 'refusing' is not available") == 1
    assert "invalid account" in document["cause"]
    assert (document["best"], document["trials"]["total"]) == (None, 3)
    assert "Resume with: parsl-rasda resume out" in err


SLOW = """
name: slow
stages:
  simulate: {python: "slow:simulate", for_each: {waits: [true, false]}}
"""
WAITING = """
import time
from pathlib import Path
def simulate(waits, directory):
    while waits and not (Path(directory).parents[3] / "go-on").exists():
        time.sleep(0.05)
    return waits
"""


BESIDE = """
name: beside
stages:
  simulate: {python: "slow:simulate", for_each: {waits: WAITS}, resources: {at_once: 3}}
  tune:
    with: {epoch_s: 0.05}
    tune:
      metric: val_loss
      num_samples: 2
      scheduler: {max_t: 2, max_workers: 2}
      search_space: {lr: {float: [0.001, 0.1], log: true}}
      training: {python: "workflows.emulated.train:train"}
"""


def test_trials_train_beside_more_calls_of_a_stage_than_the_pilot_has_workers(folder: Path) -> None:
    """Every call is at work until both trials have trained: they need workers that no call may take."""
    (folder / "beside.yaml").write_text(BESIDE.replace("WAITS", json.dumps([True] * 12)))
    (folder / "slow.py").write_text(WAITING)
    process = start(folder, "run", "beside.yaml", "--site", "logical.yaml", "--dir", "out", "--json")

    def count(pattern: str) -> int:
        return len(list((folder / "out").glob(pattern)))

    eventually(lambda: count("stages/simulate/[0-9]*") == 3, deadline_s=60)
    eventually(lambda: count("trials/*/attempt-1/epochs.jsonl") == 2, deadline_s=60)
    assert count("stages/simulate/[0-9]*") == 3, "as many as `at_once` says"
    (folder / "go-on").touch()
    code, out, err = finish(process)
    assert code == 0, err
    assert json.loads(out)["stages"]["simulate"]["result"] == [True] * 12


FILES = """
name: files
stages:
  read:
    python: reading:read
    with: {here: {file: "file://HERE"}, there: {file: "http://127.0.0.1:PORT/mesh.txt"}}
  show:
    command: [sh, -c, "cat {mesh} > result.json"]
    with: {mesh: {file: "http://127.0.0.1:PORT/sizes/mesh.txt"}}
"""
READING = """
from pathlib import Path
def read(here, there):
    return [Path(here).read_text(), Path(there).read_text(), Path(there).name]
"""


def test_parsl_stages_files_and_one_that_is_missing_fails_its_stage_in_words(folder: Path) -> None:
    served = folder / "served"
    (served / "sizes").mkdir(parents=True)
    (served / "mesh.txt").write_text("fine")
    (served / "sizes/mesh.txt").write_text("[8, 16]")
    (folder / "near.txt").write_text("near")
    (folder / "reading.py").write_text(READING)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        text = FILES.replace("HERE", str(folder / "near.txt")).replace("PORT", str(server.server_port))
        (folder / "files.yaml").write_text(text)
        words = ("run", "files.yaml", "--site", "logical.yaml", "--json", "--dir")
        code, out, err = run(folder, *words, "out")
        assert code == 0, err
        found = {name: stage["result"] for name, stage in json.loads(out)["stages"].items()}
        assert found == {"read": ["near", "fine", "mesh.txt"], "show": [8, 16]}
        (served / "mesh.txt").unlink()
        code, _, err = run(folder, *words, "missing")
        server.shutdown()
        thread.join()
    assert code == 3
    assert "Stage 'read' failed: HTTPError: 404" in err
    assert "mesh.txt" in err


def test_a_killed_controller_leaves_an_interrupted_run_and_what_had_ended_beside_a_slow_call(
    folder: Path,
) -> None:
    (folder / "slow.yaml").write_text(SLOW)
    (folder / "slow.py").write_text(WAITING)
    process = start(folder, "run", "slow.yaml", "--site", "logical.yaml", "--dir", "slow")
    eventually((folder / "slow/stages/simulate/0001.json").exists, deadline_s=60)
    document = json.loads(run(folder, "status", "slow", "--json")[1])
    assert (document["state"], document["stages"]["simulate"]["state"]) == ("running", "running")
    process.kill()
    process.communicate(timeout=60)
    document = json.loads(run(folder, "status", "slow", "--json")[1])
    assert (document["state"], document["controller"]) == ("interrupted", None)
    found = document["stages"]["simulate"]
    assert (found["state"], found["calls"], found["calls_ended"]) == ("interrupted", 2, 1)
    assert "go on with: parsl-rasda resume slow" in run(folder, "status", "slow")[1]
    (folder / "go-on").touch()
    code, out, err = run(folder, "resume", "slow", "--json")
    assert code == 0, err
    assert json.loads(out)["stages"]["simulate"]["result"] == [True, False]


def test_a_batch_system_that_ends_the_controllers_job_books_no_fault(folder: Path) -> None:
    """SIGTERM comes to the whole process group, Parsl's interchange included; trials save all the same."""
    (folder / "study.yaml").write_text(STUDY.replace("max_t: 2", "max_t: 64").replace("0.05", "0.5"))
    words = ("run", "study.yaml", "--site", "logical.yaml", "--dir", "out", "--json")
    process = start(folder, *words, as_group=True)
    eventually(
        lambda: next((folder / "out").glob("trials/*/attempt-1/epoch-*"), None) is not None, deadline_s=60
    )
    os.killpg(process.pid, signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 130, err
    document = json.loads(out)
    assert document["state"] == "interrupted"
    assert document["faults"]["list"] == []
    assert document["faults"]["preemptions"] == 0, "to be told to leave is no fault"
    assert "Resume with: parsl-rasda resume out" in err


def test_a_result_that_json_cannot_hold_is_refused_with_advice(folder: Path) -> None:
    (folder / "preparing.py").write_text("def prepare(fields, counted):\n    return object()\n")
    code, _, err = run(folder)
    assert code == 3
    assert "write data to files in `directory`" in err


def test_another_study_in_the_same_directory_is_refused(folder: Path) -> None:
    assert run(folder)[0] == 0
    (folder / "study.yaml").write_text(STUDY.replace("num_samples: 3", "num_samples: 4"))
    code, _, err = run(folder)
    assert code == 2
    assert "another study" in err
    code, _, err = run(folder, "resume", "out", "--set", "tune.num_samples=5", "--json")
    assert code == 0, err
    code, out, _ = run(folder, "status", "out", "--json")
    assert json.loads(out)["trials"]["total"] == 5


TWO = """
name: two
seed: 1
stages:
  first:
    with: {epoch_s: 0.05}
    tune: &search
      metric: val_loss
      num_samples: 3
      scheduler: {max_t: 2, max_workers: 2}
      search_space: {lr: {float: [0.001, 0.1], log: true}}
      training: {python: "workflows.emulated.train:train"}
  second:
    with: {epoch_s: 0.05}
    tune: {<<: *search, searcher: {kind: tpe, warm_start: first}}
"""


def test_a_second_search_begins_with_what_the_first_has_found(folder: Path) -> None:
    (folder / "two.yaml").write_text(TWO)
    code, out, err = run(folder, "run", "two.yaml", "--site", "logical.yaml", "--dir", "two", "--json")
    assert code == 0, err
    code, out, _ = run(folder, "status", "two", "--json")
    searches = json.loads(out)["searches"]
    trials = {t["trial"]: t for t in searches["second"]["trial_list"]}
    assert trials["0000"]["config"] == searches["first"]["best"]["config"]
    assert (folder / "two/first/journal.jsonl").exists()
    assert (folder / "two/second/journal.jsonl").exists()


def test_a_folder_with_a_study_of_its_own_is_not_written_over(folder: Path) -> None:
    code, _, err = run(folder, "run", "study.yaml", "--site", "logical.yaml", "--dir", ".")
    assert code == 2
    assert "not of a run" in err
    assert (folder / "study.yaml").read_text() == STUDY
