"""A run as an RO-Crate of the Workflow Run profile, by the judgement of the profile's validator."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.exports import export_run
from parsl_rasda.reporting.ro_crate import ro_crate
from parsl_rasda.reporting.runs import read_run

HERE = Path(__file__).parent
# In an environment of its own, for it wants an older `rich` than the rest.
PYTHON = Path(os.environ.get("RASDA_ROCRATE", HERE.parents[2] / ".venv-rocrate" / "bin")) / "python"


def crate_of(run: Path) -> dict[str, Any]:
    (file,) = export_run(read_run(run), "ro-crate")
    assert Path(file) == run / "ro-crate-metadata.json"
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    return {entity["@id"]: entity for entity in document["@graph"]}


def test_it_names_the_study_the_run_its_settings_and_every_file_that_is_there(finished: Path) -> None:
    found = crate_of(finished)
    assert found["./"]["mainEntity"] == {"@id": "study.yaml"}
    action = found["#run"]
    assert action["instrument"] == {"@id": "study.yaml"}
    assert action["actionStatus"] == "http://schema.org/CompletedActionStatus"
    assert action["startTime"] <= action["endTime"]
    assert found["#value-seed"]["value"] == 3
    for part in (entity["@id"] for entity in found["./"]["hasPart"]):
        assert (finished / part).exists(), part
    assert {"journal.jsonl", "results.csv", "report.html"} <= found.keys()
    assert "RASDA" in found["./"]["description"]


def test_a_run_without_a_result_is_an_action_that_failed(rehearsals: Any, tmp_path: Path) -> None:
    costs = rehearsals.costs_of(metric=lambda trial, epoch: float("nan"))
    rehearsals.into(tmp_path / "run", rehearsals.study_of(), costs=costs)
    action = crate_of(tmp_path / "run")["#run"]
    assert action["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert "no trial succeeded" in action["error"]


def test_a_run_whose_controller_died_has_ended_without_a_result(rehearsals: Any, tmp_path: Path) -> None:
    rehearsals.into(tmp_path / "run", rehearsals.study_of(), torn_after=60.0)
    action = crate_of(tmp_path / "run")["#run"]
    assert action["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert "interrupted" in action["error"]
    assert action["startTime"] <= action["endTime"]


def test_without_events_its_date_is_that_of_the_study(rehearsals: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rehearsals.into(run, rehearsals.study_of(), torn_after=-1.0)
    os.utime(run / "study.yaml", (1.8e9, 1.8e9))
    assert '"datePublished": "2027-01-15T08:00:00+00:00"' in ro_crate(read_run(run))


def test_a_version_that_was_not_noted_is_not_made_up(finished: Path) -> None:
    journal = finished / "journal.jsonl"
    header, *lines = journal.read_text().splitlines()
    plain = {k: v for k, v in json.loads(header).items() if k not in {"version", "crc"}}
    journal.write_text("\n".join([json.dumps(plain), *lines]) + "\n")
    versions = {e["softwareVersion"] for e in crate_of(finished).values() if "softwareVersion" in e}
    assert versions == {"of before 0.2"}


@pytest.mark.slow
def test_the_validator_of_the_profile_has_nothing_to_say(finished: Path, need: Any) -> None:
    need("rocrate", also_missing="" if PYTHON.exists() else str(PYTHON))
    assert RunDirectory(finished).study_file.exists()
    crate_of(finished)
    words = (PYTHON, HERE / "ro_crate_check.py", finished, HERE / "ro_crate_terms.json")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    file = finished / "ro-crate-metadata.json"
    file.write_text(file.read_text().replace('"instrument"', '"description"'))
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 1, "it can say something"
