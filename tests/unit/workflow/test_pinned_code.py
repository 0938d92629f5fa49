"""A run whose code is pinned runs a copy of it, which is made once."""

from __future__ import annotations

import pytest

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import load_study
from parsl_rasda.workflow.pinned_code import search_path_in

STUDY = """
name: pinned
code: {code}
tune:
  metric: loss
  num_samples: 1
  scheduler: {{max_t: 1}}
  search_space: {{lr: {{float: [0.1, 1.0]}}}}
  training: {{{training}}}
"""


def written(folder, code="pinned", training="python: train:train"):
    file = folder / "study.yaml"
    file.write_text(STUDY.format(code=code, training=training))
    return load_study(file, check_targets=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text("from models.net import net\n\n\ndef train(trial):\n    net()\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("")
    (tmp_path / "models/net.py").write_text("def net():\n    return 1\n")
    (tmp_path / "small.json").write_text("{}")
    (tmp_path / "large.bin").write_bytes(b"x" * 1_000_001)
    (tmp_path / "r").mkdir()
    return tmp_path


def test_the_modules_and_what_is_small_beside_them_are_copied_once(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    run, study = RunDirectory(folder / "r"), written(folder)
    (copy,) = search_path_in(run, study, [str(folder), str(folder)])
    (folder / "models/net.py").write_text("def net():\n    return 2\n")
    assert search_path_in(run, study, [str(folder)]) == [copy]
    names = sorted(str(p.relative_to(copy)) for p in run.code.glob("00/**/*") if p.is_file())
    assert names == ["models/__init__.py", "models/net.py", "small.json", "study.yaml", "train.py"]
    assert "return 1" in (run.code / "00/models/net.py").read_text()


def test_live_code_is_not_copied(folder) -> None:
    run = RunDirectory(folder / "r")
    assert search_path_in(run, written(folder, "live"), ["/a", "/b"]) == ["/a", "/b"]
    assert not run.code.exists()


def test_the_code_of_a_command_cannot_be_pinned(folder) -> None:
    with pytest.raises(InvalidFileError, match=r"code: found pinned.*training.command"):
        written(folder, training="command: [python, train.py]")
