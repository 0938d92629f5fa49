"""Studies and sites that a program declares instead of a file."""

from __future__ import annotations

from typing import Any

import pytest

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.orchestration.admission import tune_problems
from parsl_rasda.study import declare_executor, declare_study
from parsl_rasda.types import Capabilities

TUNE: dict[str, Any] = {
    "metric": "val_loss",
    "num_samples": 2,
    "scheduler": {"max_t": 2},
    "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
    "training": {"python": "workflows.emulated.train:train"},
}


def test_a_study_in_code_is_the_study_of_a_file() -> None:
    study = declare_study({"name": "s", "seed": 3, "tune": TUNE}, "Study", check_tune=tune_problems)
    assert (study.name, study.seed, list(study.stages)) == ("s", 3, ["tune"])


def test_every_mistake_is_told_at_once_in_the_keys_of_the_program() -> None:
    wrong = {
        **TUNE,
        "metrc": "val_loss",
        "searcher": {"kind": "tpe", "n_startup": 3},
        "training": {"python": "workflows.emulated.train:trian"},
    }
    with pytest.raises(InvalidFileError) as error:
        declare_study({"name": "s", "seed": -1, "tune": wrong}, "Study", check_tune=tune_problems)
    told = {(m.file, m.line, m.key) for m in error.value.mistakes}
    keys = ("seed", "tune.metrc", "tune.searcher.n_startup", "tune.training.python")
    assert told == {("Study", 0, key) for key in keys}
    assert str(error.value).startswith("Study: ")


@pytest.mark.parametrize("tune", [None, 7, "x", [], {}])
def test_what_is_no_search_is_a_mistake_too(tune: object) -> None:
    with pytest.raises(InvalidFileError):
        declare_study({"name": "s", "tune": tune}, "Study", check_tune=tune_problems)


def test_an_executor_in_code_has_the_keys_of_a_site_file() -> None:
    site = declare_executor({"name": "gpu", "gpus_per_node": 4, "nodes": 2}, "Slots")
    assert (site.slots_per_pilot, site.capabilities) == (8, Capabilities())
    wrong = {"gpus_per_node": 0, "mpi_launcher": "mpirun", "pilots": 2, "provider": {}}
    with pytest.raises(InvalidFileError) as error:
        declare_executor({"name": "gpu", **wrong}, "Slots")
    assert {m.key for m in error.value.mistakes} == wrong.keys()


def test_of_an_executor_a_run_directory_keeps_a_site_that_can_be_resumed_without_the_program() -> None:
    site = declare_executor({"name": "gpu", "gpus_per_node": 4, "accelerator": "none", "nodes": 2}, "Slots")
    kept = site.for_resume()
    assert (kept.name, kept.slots, kept.is_local, kept.accelerator) == ("gpu", 8, True, "none")
