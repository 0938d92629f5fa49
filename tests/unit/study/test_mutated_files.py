"""No file, however broken, gives anything but an answer or messages with a place, soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from parsl_rasda.cli.options import load_inputs
from parsl_rasda.errors import PlacementImpossibleError, RasdaError
from tests.unit.study.mutations import DIAGNOSTIC, VARIABLES, cases

SEED = int(os.environ.get("MUTATIONS_SEED", "1"))
COUNT = int(os.environ.get("MUTATIONS", "300"))
LONGEST_S = 2.0


@pytest.mark.parametrize("part", range(4))
def test_a_mutated_file_is_read_or_told_where_it_is_wrong(
    tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    for number, (study, site) in enumerate(cases(SEED * 1000 + part, COUNT // 4, tmp_path)):
        began = time.process_time()
        try:
            load_inputs(study, [str(site)])
        except PlacementImpossibleError:
            pass  # about a study and a site together
        except RasdaError as error:
            for line in str(error).split("\n"):
                assert DIAGNOSTIC.match(line), (number, line)
        took = time.process_time() - began
        assert took < LONGEST_S, (number, took)
