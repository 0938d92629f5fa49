"""Which results stand when a study is run again, and which calls are made anew."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.errors import StageFailedError
from parsl_rasda.orchestration.admission import AdmittedStudy
from parsl_rasda.orchestration.progress import NoProgress
from parsl_rasda.orchestration.replay import save_run
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import StudySpec
from parsl_rasda.workflow.dag import Call, under_kept_names
from parsl_rasda.workflow.run import WorkflowRun
from parsl_rasda.workflow.tasks import call_command, call_python
from tests.unit.workflow.test_stages import HERE, FakePool

CODE = """
GRID = 64
def simulate(seed, mesh):
    return GRID
def refine(field):
    return field
def prepare(fields):
    return fields
"""


class Project:
    """A study and its module, run again and again in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, RunDirectory(folder / "run")
        (folder / "mesh.txt").write_text("coarse")
        self.write(CODE)
        self.stages: dict[str, Any] = {
            "simulate": {
                "python": "steps:simulate",
                "with": {"mesh": str(folder / "mesh.txt")},
                "for_each": {"seed": [0, 1]},
            },
            "refine": {"python": "steps:refine", "for_each": {"field": "simulate"}},
            "prepare": {"python": "steps:prepare", "needs": {"fields": "refine"}},
        }

    def write(self, code: str) -> None:
        (self.folder / "steps.py").write_text(code)

    def asked(
        self, answer: Any = lambda name, call: f"{name} of {sorted(map(str, call.arguments.values()))}"
    ) -> Any:
        """Run the study; return how often each stage was called."""
        study = StudySpec.model_validate({"name": "steps", "stages": self.stages})
        places = FakePool(answer)
        with self.run.controlled():
            save_run(self.run, study, [HERE])
            admitted = AdmittedStudy(study, (HERE,))
            WorkflowRun(admitted, self.run, (str(self.folder),), NoProgress()).run_in(places)  # type: ignore[arg-type]
        stages = [name.partition("/")[0] for name in places.asked]
        return {name: stages.count(name) for name in dict.fromkeys(stages)}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    assert made.asked() == {"simulate": 2, "refine": 2, "prepare": 1}
    assert made.asked() == {}
    return made


def test_comments_and_neighbours_change_nothing(project: Project) -> None:
    project.write("# Flows.\n" + CODE + "\ndef evaluate(best):\n    return best\n")
    assert project.asked() == {}


def test_code_repeats_exactly_what_depends_on_it(project: Project) -> None:
    project.write(CODE.replace("return field\n", "return 2 * field\n"))
    assert project.asked() == {"refine": 2, "prepare": 1}
    project.write(CODE.replace("return field\n", "return 2 * field\n").replace("64", "128"))
    assert project.asked() == {"simulate": 2, "refine": 2, "prepare": 1}


def test_an_argument_and_a_file_that_it_names_repeat_what_depends_on_them(project: Project) -> None:
    project.stages["prepare"]["needs"] = {"fields": "simulate"}
    assert project.asked() == {"prepare": 1}
    (project.folder / "mesh.txt").write_text("fine, and longer")
    assert project.asked() == {"simulate": 2, "refine": 2, "prepare": 1}


def test_a_staged_file_repeats_what_depends_on_it(project: Project) -> None:
    mesh, everything = project.folder / "mesh.txt", {"simulate": 2, "refine": 2, "prepare": 1}
    for url in (f"file://{mesh}", "http://127.0.0.1/coarse.h5", "http://127.0.0.1/fine.h5"):
        project.stages["simulate"]["with"]["mesh"] = {"file": url}
        assert project.asked() == everything, url
        assert project.asked() == {}
    project.stages["simulate"]["with"]["mesh"] = {"file": f"file://{mesh}"}
    assert project.asked() == everything
    mesh.write_text("fine, and longer")
    assert project.asked() == everything


def test_one_more_value_anywhere_in_a_list_is_one_more_call(project: Project) -> None:
    project.stages["simulate"]["for_each"] = {"seed": [7, 0, 1]}
    assert project.asked() == {"simulate": 1, "refine": 1, "prepare": 1}
    project.stages["simulate"]["for_each"] = {"seed": [1, 7]}
    assert project.asked() == {"prepare": 1}


def test_what_lost_its_files_is_made_again(project: Project) -> None:
    def answer(name: str, call: Call) -> Any:
        file = project.run.stages / name / call.name / "field.h5"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return {"file": str(file)}

    project.stages["simulate"]["with"]["mesh"] = "other"
    assert project.asked(answer) == {"simulate": 2, "refine": 2, "prepare": 1}
    assert project.asked(answer) == {}
    next(project.run.stages.glob("refine/*/field.h5")).unlink()
    assert project.asked(answer) == {"refine": 1}


def test_a_list_that_is_none_is_refused_in_words(project: Project) -> None:
    project.stages["all"] = {"python": "steps:refine", "for_each": {"field": "prepare"}}
    with pytest.raises(StageFailedError, match="stage prepare returned no list, but a value of type str"):
        project.asked()


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ({}, ["0000", "0001", "0002"]),
        ({"b": "0000"}, ["0001", "0000", "0002"]),
        ({"c": "0001"}, ["0000", "0002", "0001"]),
    ],
)
def test_kept_calls_keep_their_names_and_others_take_free_ones(
    kept: Mapping[str, str], names: list[str]
) -> None:
    calls = [Call(f"{i:04d}", None, {}, key) for i, key in enumerate("abc")]
    assert [call.name for call in under_kept_names(calls, kept)] == names


def test_a_worker_that_lives_long_runs_the_code_that_is_there_now(tmp_path: Path) -> None:
    module, call = tmp_path / "edited_steps.py", tmp_path / "call"
    (tmp_path / "edited_helper.py").write_text("FACTOR = 1\n")
    module.write_text("from edited_helper import FACTOR\ndef f():\n    return FACTOR\n")

    def result() -> Any:
        return call_python("f", "edited_steps:f", {}, str(call), [str(tmp_path)])["result"]

    try:
        assert (result(), result()) == (1, 1)
        (tmp_path / "edited_helper.py").write_text("FACTOR = 1_000\n")
        assert result() == 1000
    finally:
        sys.path.remove(str(tmp_path))


def test_a_call_begins_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "call").mkdir()
    (tmp_path / "call" / "result.json").write_text('"of an earlier attempt"')
    assert call_command("f", ["true"], {}, str(tmp_path / "call"))["result"] == str(tmp_path / "call")
