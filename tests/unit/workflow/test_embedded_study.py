from __future__ import annotations

from pathlib import Path

from parsl_rasda.api import Slots, Study
from parsl_rasda.orchestration.replay import save_run
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.study import StudySpec, dump_study


def test_of_a_study_in_a_program_the_run_directory_holds_only_the_search(tmp_path: Path, rehearsals) -> None:
    search = rehearsals.study_of().tune_stages["tune"].model_dump(mode="json", by_alias=True)
    stages = {
        "prepare": {"command": ["true"]},
        "tune": {**search, "needs": {"data": "prepare"}},
        "evaluate": {"command": ["true"], "needs": {"best": "tune"}},
    }
    file = tmp_path / "whole.yaml"
    file.write_text(dump_study(StudySpec.model_validate({"name": "whole", "stages": stages})))
    study, run = Study.from_yaml(file), tmp_path / "run"
    assert study.needs == ("data",)
    rehearsals.into(run, study.spec)
    save_run(RunDirectory(run), study.spec, [Slots("cpu", accelerator="cpu").site().for_resume()])
    document = read_run(run).document()
    assert list(document["stages"]) == ["tune"]
    assert document["state"] == "done", "the stages around it are the program's"
