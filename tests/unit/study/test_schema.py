"""The schemas that editors use: they accept all that is shipped, and see every mistake of form."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from fsspec.registry import known_implementations

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study import load_site, load_study
from parsl_rasda.study.document import read_document
from parsl_rasda.study.schema import KINDS, as_text, schema_of, shipped
from tests.unit.study.conftest import STUDY
from tests.unit.study.mutations import VARIABLES, cases
from tests.unit.study.test_study_mistakes import MISTAKES

ROOT = Path(__file__).resolve().parents[3]
STUDIES = [*sorted((ROOT / "workflows").glob("*/*.yaml"))]
SITES = [*sorted((ROOT / "site_configs").glob("*.yaml")), ROOT / "workflows/site.yaml"]

# What only another part of the study, or another file, can tell; `validate` sees all of it.
BEYOND_A_SCHEMA = {
    "sums and powers of other values": {"more brackets than rungs", "brackets where first comers wait"},
    "order and values of other parts": {
        "condition on a later one",
        "impossible condition",
        "prior out of range",
    },
    "other files, packages and variables": {
        "no such function",
        "no such module",
        "argument unknown",
        "argument missing",
        "a constant of another type",
        "checkpoints nowhere",
        "variable",
    },
}
LEAST_SEEN = 0.8  # of all mistakes that are tested, also those that are no YAML
NO_YAML = {"duplicate key", "tab", "bracket", "merge of no mapping"}  # editors tell these before any schema


def validator(kind: str) -> jsonschema.Draft7Validator:
    schema = json.loads(shipped(kind).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


CHECKS = {kind: validator(kind) for kind in KINDS}


def as_written(file: Path) -> object:
    """A file's data, with its variables as an editor sees them."""
    variables = ("${", "$${")
    text = file.read_text(encoding="utf-8").replace(*variables)
    file = file.parent / "as_written.yaml"
    file.write_text(text, encoding="utf-8")
    return read_document(file, {}).data


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_schema_is_that_of_the_models(kind: str) -> None:
    made = as_text(schema_of(kind, installed=False))
    assert shipped(kind).read_text() == made, "run `make reference`"


@pytest.mark.parametrize("file", [*STUDIES, *SITES], ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_is_shipped_is_good_for_an_editor_too(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    data = as_written(copy)
    assert isinstance(data, dict)
    kind = "study" if {"tune", "stages"} & data.keys() else "site"
    assert [error.message for error in validator(kind).iter_errors(data)] == []


def test_a_schema_sees_every_mistake_of_form(folder: Path) -> None:
    study, check, unseen = folder / "study.yaml", validator("study"), set()
    for name, (old, new, *_) in MISTAKES.items():
        study.write_text(STUDY.replace(str(old), str(new)))
        if name not in NO_YAML and check.is_valid(as_written(study)):
            unseen.add(name)
    assert unseen == set().union(*BEYOND_A_SCHEMA.values())
    seen = len(MISTAKES) - len(unseen) - len(NO_YAML)
    assert seen / len(MISTAKES) >= LEAST_SEEN


def test_a_single_tune_is_typed_as_in_a_stage(folder: Path) -> None:
    study, check = folder / "study.yaml", validator("study")
    text = (ROOT / "workflows/minimal/study.yaml").read_text()
    for old, new in (("mode: min", "mode: mini"), ("{choice: [16, 32, 64]}", "{choise: [16, 32]}")):
        assert old in text
        study.write_text(text)
        assert check.is_valid(as_written(study))
        study.write_text(text.replace(old, new))
        assert not check.is_valid(as_written(study))


def test_whatever_is_valid_is_so_for_an_editor_who_sees_most_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of shipped files with random changes, as far as they are YAML of a size to be read."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    loads: dict[str, Callable[[Path], object]] = {
        "study": lambda file: load_study(file, check_targets=False),
        "site": load_site,
    }
    counted: Counter[tuple[bool, bool]] = Counter()
    for files in cases(5, 200, tmp_path):
        for (kind, load), file in zip(loads.items(), files, strict=True):
            with contextlib.suppress(InvalidFileError):
                data = read_document(file, VARIABLES).data
                errors = [error.message for error in CHECKS[kind].iter_errors(data)]
                is_valid = is_accepted(load, file)
                assert not (is_valid and errors), (file.read_text(), errors)
                counted[is_valid, bool(errors)] += 1
    mistakes = counted[False, True] + counted[False, False]
    assert counted[True, False] > 100
    assert counted[False, True] / mistakes > 0.7


def is_accepted(load: Callable[[Path], object], file: Path) -> bool:
    try:
        load(file)
    except InvalidFileError:
        return False
    return True


UNUSUAL = {"batch": "samples_of_a_step", "optimizer": "rule", "momentum": "inertia", "simulate": "solve_flow"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch_size: batch", "batch_size: samples_of_a_step"),
        ("when: {rule: sgd}", "when: {rule: [sgd]}"),
        ("{initial: 1}", "{initial: lr}"),
        (
            "python: steps:train",
            "command: python train.py --lr {lr:.3f} {{x}} --rule {rule} --to {until}",
        ),
        ("grace_period: 1", "grace_period: 8"),
        ("{float: [1e-4, 1e-1], log: true}", "{float: [-1, 1]}"),
        ("mode: min", "mode: min\n      checkpoints: s3://bucket/folder"),
        ("mode: min", "mode: min\n      checkpoints: osdf:///ospool/folder"),
        ("searcher: {kind: tpe, n_startup_trials: 4}", "searcher: {kind: tpe, warm_start: null}"),
    ],
)
def test_a_name_that_is_unusual_is_no_mistake(
    folder: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the rules on usual names may not touch, in a study that has others."""
    monkeypatch.setitem(known_implementations, "osdf", {"class": "pelicanfs.core.OSDFFileSystem"})
    study, text = folder / "study.yaml", STUDY
    for usual, unusual in UNUSUAL.items():
        text = text.replace(f"{usual}:", f"{unusual}:").replace(f": {usual}}}", f": {unusual}}}")
    text = text.replace("batch_size: batch", "batch_size: samples_of_a_step")
    assert old in text or new in text
    study.write_text(text.replace(old, new))
    load_study(study, check_targets=False, environment={})
    assert [e.message for e in CHECKS["study"].iter_errors(as_written(study))] == []


def test_a_placeholder_may_stand_in_the_format_of_another(folder: Path) -> None:
    study, new = folder / "study.yaml", "command: python train.py {lr:.{seed}e} {optimizer!r:>{batch_size}}"
    study.write_text(STUDY.replace("python: steps:train", new))
    load_study(study, check_targets=False, environment={})
    assert [e.message for e in CHECKS["study"].iter_errors(as_written(study))] == []


def test_the_schema_of_an_installation_knows_its_kinds_of_urls(folder: Path) -> None:
    old, new, *_ = MISTAKES["checkpoints nowhere"]
    (folder / "study.yaml").write_text(STUDY.replace(str(old), str(new)))
    check = jsonschema.Draft7Validator(schema_of("study"))
    assert not check.is_valid(as_written(folder / "study.yaml"))
    (folder / "study.yaml").write_text(STUDY.replace(str(old), str(new).replace("s33", "s3")))
    assert check.is_valid(as_written(folder / "study.yaml"))
