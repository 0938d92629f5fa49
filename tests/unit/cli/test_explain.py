"""`explain`, `schema` and completion: what a file may hold, told from the models."""

from __future__ import annotations

import json

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from parsl_rasda.cli.main import app
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plugins import SEARCHERS
from parsl_rasda.study.reference import NAME, canonical, keys_of_file
from parsl_rasda.study.schema import schema_of

KEYS = [key for file in ("study", "site") for key in keys_of_file(file)]


def command(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def test_a_key_is_explained_by_its_path_or_its_end() -> None:
    whole = command("explain", "tune.scheduler.max_t")
    assert whole.exit_code == 0
    assert whole.stdout == command("explain", "max_t").stdout
    assert whole.stdout == command("explain", "stages.any.tune.scheduler.max_t").stdout
    for words in (
        "TYPE     whole number",
        "ALLOWED  at least 1",
        "DEFAULT  none",
        "EXAMPLE  max_t: 8",
        "minimal",
    ):
        assert words in whole.stdout


def test_a_block_is_explained_with_its_keys() -> None:
    text = command("explain", "scheduler").stdout
    for key in KEYS:
        if key.path.startswith("tune.scheduler.") and key.path.count(".") == 2:
            assert f"\n  {key.name} " in text


def test_a_name_of_both_files_is_explained_for_both() -> None:
    text = command("explain", "name").stdout
    assert "(study file)" in text
    assert "(site file)" in text


def test_options_of_the_searchers_that_are_installed_are_explained() -> None:
    text = command("explain", "n_startup_trials").stdout
    assert "with kind: tpe" in text
    assert "DEFAULT  10" in text


def test_an_unknown_key_is_refused_with_the_nearest_there_is() -> None:
    with pytest.raises(InvalidSettingError, match=r"did you mean max_workers\?"):
        app(["explain", "max_worker"], standalone_mode=False)


def test_every_key_says_what_it_is_and_has_an_example_unless_it_is_a_block() -> None:
    for key in KEYS:
        assert key.description, key.path
        assert key.type, key.path
        is_block = any(each.path.startswith(f"{canonical(key.path)}.") for each in KEYS)
        of_optuna = any(f"kind: {kind}" == key.only for kind in SEARCHERS.built_in)
        assert key.example or is_block or of_optuna or key.name == "max_workers", key.path


def test_every_example_of_a_search_is_good_where_it_stands() -> None:
    from parsl_rasda.study.document import parse_value

    check = jsonschema.Draft7Validator(schema_of("study"))
    for key in KEYS:
        if key.file != "study" or not key.path.startswith("tune.") or NAME in key.path or not key.example:
            continue
        if key.path.startswith(("tune.metrics.", "tune.constraints.")):
            continue  # of an item of a list, whose example has it
        choice = dict([key.only.split(": ")]) if key.only else {}
        value = parse_value(f"{{{key.example}}}", "example", (), {}).data
        study: dict[str, object] = {
            "name": "x",
            "tune": {
                "metric": "loss",
                "num_samples": 1,
                "scheduler": {"max_t": 1},
                "search_space": {"lr": 1},
                "training": {"python": "train:train"},
            },
        }
        block: object = study
        for part in key.path.split(".")[:-1]:
            assert isinstance(block, dict)
            block = block.setdefault(part, {})
        if isinstance(block, dict):  # a word may stand for the block
            block |= {**value, **choice}
            if key.name == "command":
                block.pop("python", None)
            if key.name == "metrics":
                block.pop("metric", None)
        assert [error.message for error in check.iter_errors(study)] == [], key.path


def test_a_schema_is_one_document_on_stdout() -> None:
    for kind in ("study", "site"):
        assert json.loads(command("schema", kind).stdout) == schema_of(kind)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("explain tune.sched", "tune.scheduler.max_t"), ("validate study.yaml --site work", "workstation")],
)
def test_a_shell_completes_keys_and_sites(typed: str, expected: str) -> None:
    environment = {
        "_PARSL_RASDA_COMPLETE": "complete_bash",
        "COMP_WORDS": f"parsl-rasda {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="parsl-rasda")
    assert expected in result.stdout.split()
