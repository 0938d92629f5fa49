from __future__ import annotations

from pathlib import Path

from parsl_rasda.orchestration.history import save_run
from parsl_rasda.orchestration.rundir import RunDirectory
from parsl_rasda.pipeline.embedding import Slots, Study
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.study import StudySpec


def test_of_a_study_in_a_program_the_run_directory_holds_only_the_search(tmp_path: Path, rehearsals) -> None:
    search = rehearsals.study_of().tune_stages["tune"].model_dump(mode="json", by_alias=True)
    python = "workflows.emulated.train:train"
    stages = {
        "prepare": {"python": python},
        "tune": {**search, "needs": {"data": "prepare"}},
        "evaluate": {"python": python, "needs": {"best": "tune"}},
    }
    study = Study(StudySpec.model_validate({"name": "whole", "stages": stages}))
    rehearsals.into(tmp_path, study.alone)
    save_run(RunDirectory(tmp_path), study.alone, [Slots("cpu", accelerator="cpu").site()])
    document = read_run(tmp_path).document()
    assert list(document["stages"]) == ["tune"]
    assert document["state"] == "done", "the stages around it are the program's"
