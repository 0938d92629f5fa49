"""The result of a study is a mapping that also shows, tabulates and loads what was found."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from parsl_rasda import StudyResult
from parsl_rasda.errors import CheckpointError, InvalidSettingError, RunDirectoryError
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.runtime import local_trial
from tests.unit.reporting.test_html import HOSTILE, Reader

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def several(rehearsals, tmp_path: Path) -> Path:
    directory = tmp_path / "several"
    rehearsals.into(directory, rehearsals.study_of(), also={"accuracy": lambda epoch: 1 - 1 / epoch})
    return directory


def test_it_is_the_mapping_that_it_was(several: Path) -> None:
    result = StudyResult.open(several)
    best = read_run(several).document()["best"]
    assert result == best == result.best
    assert dict(**result) == best
    assert json.loads(json.dumps(result)) == best
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert (type(again), again.directory, again.stage) == (StudyResult, several, "tune")


def test_its_tables_have_every_trial_and_every_metric(several: Path) -> None:
    pytest.importorskip("pandas")
    result = StudyResult.open(several)
    trials = result.summary()["trial_list"]
    wide = result.dataframe()
    assert list(wide.index) == [t["trial"] for t in trials]
    assert list(wide["accuracy"]) == [t["metrics"]["accuracy"] for t in trials]
    assert list(wide["config.lr"]) == [t["config"]["lr"] for t in trials]
    assert ((wide["ended"] - wide["began"]).dt.total_seconds() > 0).all()
    long = result.dataframe(long=True)
    assert len(long) == sum(len(curve) for t in trials for curve in t["curves"].values())


def test_a_notebook_gets_its_curves_in_html_that_is_whole_and_harmless(rehearsals, tmp_path: Path) -> None:
    study = rehearsals.study_of(search_space={"lr": {"float": [0.001, 0.1]}, "name": {"choice": [HOSTILE]}})
    rehearsals.into(
        tmp_path,
        study,
        config_of=lambda trial: {"lr": 0.01, "name": HOSTILE},
        also={"accuracy": lambda epoch: 1 - 1 / epoch},
    )
    bundle = StudyResult.open(tmp_path)._repr_mimebundle_()
    found = Reader(bundle["text/html"])
    assert found.tags.count("svg") == 2
    assert not {"script", "img"} & set(found.tags)
    assert HOSTILE in found.words
    assert bundle["text/plain"].startswith("StudyResult({'trial': ")


def test_without_its_run_directory_it_shows_the_best_trial(several: Path) -> None:
    result = StudyResult.open(several)
    lost = StudyResult(result, several / "gone", "tune")
    Reader(lost._repr_html_())
    assert result["trial"] in lost._repr_html_()


def test_what_cannot_be_opened_is_said(rehearsals, several: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        StudyResult.open(tmp_path / "nowhere")
    with pytest.raises(InvalidSettingError, match="a search of rehearsed: tune"):
        StudyResult.open(several, "other")
    rehearsals.into(tmp_path / "new", rehearsals.study_of(), torn_after=1.0)
    with pytest.raises(RunDirectoryError, match="no trial with a result yet"):
        StudyResult.open(tmp_path / "new")


def test_it_loads_the_weights_that_were_trained(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    trial = local_trial({"lr": 0.1}, directory=tmp_path / "attempt", batch_size=2)
    model, _ = trial.prepare(torch.nn.Linear(3, 1), torch.optim.SGD, lr=0.1)
    for _ in trial.epochs():
        for (x,) in trial.batches((torch.ones(4, 3),)):
            trial.step(model(x).mean())
        trial.report(val_loss=1.0)
    (checkpoint,) = {report.checkpoint.path for report in trial.history if report.checkpoint}
    result = StudyResult({**StudyResult.open(several), "checkpoint": checkpoint}, several, "tune")
    built: list[dict] = []
    loaded = result.load_model(lambda config: built.append(config) or torch.nn.Linear(3, 1))
    assert built == [result["config"]]
    assert torch.equal(loaded.weight, model.weight)
    lines = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)[-1]
    module = SimpleNamespace(build=lambda config: torch.nn.Linear(3, 1))
    monkeypatch.setitem(sys.modules, "train", module)  # type: ignore[arg-type]  # it has what is imported
    monkeypatch.setattr(StudyResult, "open", lambda directory: result)
    said: dict = {}
    exec(compile(lines, "README.md", "exec"), said)
    assert torch.equal(said["model"].weight, model.weight), "the lines of the README do it"


def test_a_trial_without_a_checkpoint_has_no_model(several: Path) -> None:
    result = StudyResult({**StudyResult.open(several), "checkpoint": None}, several, "tune")
    with pytest.raises(CheckpointError, match="no model to load"):
        result.load_model(lambda config: config)
