"""The notebooks of the docs run from their first cell to their last."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from command_line import REPOSITORY

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]
DOCS = REPOSITORY / "docs"


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebook", DOCS / "run_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cfd_study_runs_from_simulation_to_the_unseen_flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = runner().execute(DOCS / "notebooks/cfd.ipynb", tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<svg" in "".join(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert any("image/png" in o.get("data", {}) for o in outputs)
    (said,) = [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
    unseen = float(said.split()[-2])
    assert 0 < unseen < 0.9, "the best network is better than doing nothing"
    assert str(tmp_path) not in str(notebook)
