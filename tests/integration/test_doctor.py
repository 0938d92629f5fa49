"""The doctor on this machine; `test_slurm` has it on a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import finish, start

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

LOGICAL = """
provider: {type: LocalProvider}
accelerator: none
mpi_launcher: process
gpus_per_node: 4
nodes: 8
"""


def examine(folder: Path, site: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = finish(start(folder, "doctor", "--site", site, "--json"))
    return code, json.loads(out) if out else {}, err


def test_logical_slots_are_fit_and_nothing_is_said_of_torch(tmp_path: Path) -> None:
    (tmp_path / "logical.yaml").write_text(LOGICAL)
    code, document, err = examine(tmp_path, "logical.yaml")
    assert code == 0, err
    found = {f["what"]: f for f in document["findings"]}
    assert found["pilot"]["found"].startswith("2 nodes"), "two of eight are enough"
    assert found["all-reduce, 2 nodes"]["verdict"] == "ok"
    assert found["torch"]["verdict"] == "-"
    assert [path.name for path in tmp_path.iterdir()] == ["logical.yaml"], "nothing is left"


def test_a_site_that_gives_no_pilot_is_told_with_its_reason(tmp_path: Path) -> None:
    broken = LOGICAL.replace("LocalProvider}", "LocalProvider, worker_init: 'echo no module >&2; exit 3'}")
    (tmp_path / "broken.yaml").write_text(broken)
    code, document, err = examine(tmp_path, "broken.yaml")
    assert code == 4
    assert not document
    assert "no module" in err
