from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from parsl_rasda.errors import Diagnostic, InvalidFileError
from parsl_rasda.study import load_study

# What is changed in a good study, and the words of the mistake, which must name the line where the
# change ends, or the one given.
MISTAKES: dict[str, tuple[str | int, ...]] = {
    "unknown key": (
        "max_t: 8",
        "max_t: 8\n        reduction_factr: 3",
        "reduction_factr: found an unknown key; allowed: kind,",
        "(did you mean reduction_factor?)",
    ),
    "unknown key at the top": ("seed: 7", "sead: 7", "sead: found an unknown key", "(did you mean seed?)"),
    "no choice": ("[sgd, adamw]", "[]", "optimizer.choice: found []; allowed: at least one entry"),
    "missing key": (
        "      metric: val_loss\n",
        "",
        "tune.metric: found nothing; allowed: The name that training reports",
    ),
    "missing key of which there is much to say": (
        "        max_t: 8\n",
        "",
        17,
        "scheduler.max_t: found nothing; allowed: Epochs of a trial that is never stopped\n",
    ),
    "checkpoints at a path": (
        "      num_samples: 16\n",
        "      num_samples: 16\n      checkpoints: /scratch/shared\n",
        "tune.checkpoints: found '/scratch/shared'; allowed: a URL that every site reaches",
        "for example file:///scratch/shared",
    ),
    "checkpoints nowhere": (
        "      num_samples: 16\n",
        "      num_samples: 16\n      checkpoints: s33://bucket/folder\n",
        "tune.checkpoints: found 's33://bucket/folder'; allowed: a URL of a kind that fsspec knows",
        "(did you mean s3?)",
    ),
    "checkpoints at a relative path": (
        "      num_samples: 16\n",
        "      num_samples: 16\n      checkpoints: file://shared\n",
        "tune.checkpoints: found 'file://shared'; allowed: an absolute path",
    ),
    "a day before all others": (
        "      num_samples: 16\n",
        "      num_samples: 16\n      budget: {until: '0001-01-01 08:00'}\n",
        "tune.budget.until: found '0001-01-01 08:00'; allowed: a day that there is",
    ),
    "a search on each site": (
        "    tune:\n      metric",
        "    site: each\n    tune:\n      metric",
        13,
        "site: found each; allowed: the name of a site; without one, a search uses all of them",
    ),
    "a search for each value": (
        "    tune:\n      metric",
        "    for_each: {grid: [32, 64]}\n    tune:\n      metric",
        13,
        "for_each: found {grid: [32, 64]}; allowed: a search of its own for each",
    ),
    "no call at a time": (
        "    needs: {fields: simulate}\n",
        "    needs: {fields: simulate}\n    resources: {at_once: 0}\n",
        "prepare.resources.at_once: found 0; allowed: greater than or equal to 1",
    ),
    "what a stage cannot take": (
        "    needs: {fields: simulate}\n",
        "    needs: {fields: simulate}\n    resources: {gpus: 2}\n",
        "prepare.resources.gpus: found an unknown key; allowed: at_once",
    ),
    "calls of a search": (
        "    tune:\n      metric",
        "    resources: {at_once: 2}\n    tune:\n      metric",
        13,
        "tune.resources: found an unknown key; allowed: needs, with, for_each, site, tune",
    ),
    "a file of an unknown kind": (
        "with: {grid: 64,",
        "with: {grid: {file: s3://bucket/mesh.h5},",
        "simulate.with.grid.file: found 's3://bucket/mesh.h5'; allowed: a URL with the name of a file: file:///",
    ),
    "a file without a name": (
        "with: {grid: 64,",
        "with: {grid: {file: http://host/},",
        "simulate.with.grid.file: found 'http://host/'; allowed: a URL with the name of a file",
    ),
    "a file for a search": (
        "    needs: {data: prepare}\n    tune:",
        "    needs: {data: prepare}\n    with: {mesh: {file: http://host/mesh.h5}}\n    tune:",
        13,
        "tune.with.mesh.file: found 'http://host/mesh.h5'; allowed: a path, or what a stage before it",
    ),
    "a constant of another type": (
        "with: {grid: 64, viscosity: 2e-3}",
        "with: {grid: 64, viscosity: thick}",
        "simulate.with.viscosity: found 'thick'; allowed: float, which steps:simulate says of viscosity",
    ),
    "wrong word": (
        "mode: min",
        "mode: minn",
        "tune.mode: found 'minn'; allowed: min, max (did you mean min?)",
    ),
    "no whole number": ("num_samples: 16", "num_samples: many", "found 'many'; allowed: a whole number"),
    "true is no number": ("num_samples: 16", "num_samples: true", "found true; allowed: a whole number"),
    "too small": ("num_samples: 16", "num_samples: 0", "found 0; allowed: greater than or equal to 1"),
    "grace period": (
        "grace_period: 1",
        "grace_period: 9",
        "grace_period: found 9, which is more than max_t; allowed: 1 to 8",
    ),
    "more brackets than rungs": (
        "max_t: 8",
        "max_t: 8\n        brackets: 5",
        "brackets: found 5, which is more than there are rungs; allowed: 1 to 4 (rungs up to max_t), or auto",
    ),
    "brackets where first comers wait": (
        "max_t: 8",
        "max_t: 8\n        min_compared: 3\n        brackets: 2",
        "brackets: found 2, with min_compared: 3; allowed: 1, or a plain min_compared",
    ),
    "brackets in words": (
        "max_t: 8",
        "max_t: 8\n        brackets: many",
        "brackets: found 'many'; allowed: a whole number from 1 to ",
    ),
    "workers": (
        "max_workers: 8",
        "max_workers: 2\n        num_workers: 4",
        "num_workers: found 4, which is more than max_workers",
    ),
    "workers that doubling misses": (
        "max_workers: 8",
        "max_workers: 6",
        "max_workers: found 6, which num_workers does not reach by scaling_factor; allowed: 1, 2, 4, 8, ...",
    ),
    "workers that nothing multiplies": (
        "max_workers: 8",
        "scaling_factor: 1\n        max_workers: 8",
        "max_workers: found 8, which num_workers does not reach by scaling_factor; allowed: 1\n",
    ),
    "three bounds": (
        "[0.0, 0.99]",
        "[0.0, 0.5, 0.99]",
        "momentum.float: found [0.0, 0.5, 0.99]; allowed: at most 2 entries",
    ),
    "both forms": (
        "name: cfd\n",
        "name: cfd\ntune: {}\n",
        2,
        "tune: found an unknown key; allowed: name, seed, code, track, notify, stages\n",
    ),
    "unknown key that looks like a tag": (
        "max_t: 8",
        "max_t: 8\n        <odd>: 3",
        "<odd>: found an unknown key; allowed: kind,",
    ),
    "warm start from nowhere": (
        "searcher: {kind: tpe,",
        "searcher: {kind: tpe, warm_start: prepare,",
        "found 'prepare', which searches nothing",
    ),
    "known first, of nothing": (
        "searcher: {kind: tpe,",
        "searcher: {kind: tpe, first: [{}],",
        "searcher.first.0: found {}; allowed: at least one entry",
    ),
    "prior out of range": ("log: true}", "log: true, prior: 99}", "lr.prior: found 99; allowed: a value of"),
    "confidence in nothing": (
        "log: true}",
        "log: true, confidence: low}",
        "lr.confidence: found 'low' in no prior; allowed: a prior beside it",
    ),
    "merge of no mapping": ("name: cfd", "name: cfd\n<<: 3", "something that is not a mapping"),
    "unknown scheduler": (
        "kind: rasda",
        "kind: rasdaa",
        "scheduler.kind: found 'rasdaa'; allowed: rasda, asha (did you mean rasda?)",
    ),
    "unknown searcher": (
        "kind: tpe",
        "kind: tp",
        "searcher.kind: found 'tp'; allowed: random, grid, sobol, tpe",
        "(did you mean tpe?)",
    ),
    "metric": ("metric: val_loss", "metric: val loss", "found 'val loss'; allowed: letters"),
    "needs nobody": (
        "{fields: simulate}",
        "{fields: simulat}",
        "needs.fields: found 'simulat', no stage; allowed: a stage of this study: simulate, tune, evaluate "
        "(did you mean simulate?)",
    ),
    "values of nobody": (
        "{seed: [0, 1, 2]}",
        "{seed: prepar}",
        "for_each.seed: found 'prepar', no stage",
        "(did you mean prepare?)",
    ),
    "no values": (
        "{seed: [0, 1, 2]}",
        "{seed: []}",
        "for_each.seed: found []; allowed: a list of values, or the name of a stage",
    ),
    "argument twice": (
        "{grid: 64, viscosity: 2e-3}",
        "{grid: 64, seed: 1}",
        6,
        "for_each.seed: found an argument that `with` gives too",
    ),
    "our argument": (
        "{grid: 64, viscosity: 2e-3}",
        "{grid: 64, directory: x}",
        "with.directory: found a name that is ours",
    ),
    "no variant": (
        "python: steps:prepare",
        "pyton: steps:prepare",
        8,
        "stages.prepare: found only pyton, needs; allowed: exactly one of python, command, tune "
        "(did you mean python?)",
    ),
    "two variants": (
        "python: steps:prepare",
        "python: steps:prepare\n    command: ls",
        8,
        "stages.prepare: found python and command; allowed: exactly one of",
    ),
    "no target": (
        "python: steps:prepare",
        "python: steps.prepare",
        "found 'steps.prepare'; allowed: package.module:function",
    ),
    "bounds": (
        "{float: [1e-4, 1e-1], log: true}",
        "{float: [1e-1, 1e-4]}",
        "search_space.lr.float: found [0.1, 0.0001]; allowed: [low, high], low first",
    ),
    "logarithm": (
        "{float: [1e-4, 1e-1], log: true}",
        "{float: [0, 1], log: true}",
        "lr.float: found [0, 1]; allowed: low > 0",
    ),
    "YAML 1.1's yes": ("log: true", "log: yes", "lr.log: found 'yes'; allowed: a boolean"),
    "unknown parameter form": (
        "{choice: [16, 32]}",
        "{choices: [16, 32]}",
        "search_space.batch: found only choices; allowed: exactly one of float, int, choice, constant "
        "(did you mean choice?)",
    ),
    "choice twice": ("[sgd, adamw]", "[sgd, adamw, sgd]", "optimizer.choice.2: found 'sgd' a second time"),
    "condition on nobody": (
        "when: {optimizer: sgd}",
        "when: {optimiser: sgd}",
        "momentum.when.optimiser: found no such parameter",
        "(did you mean optimizer?)",
    ),
    "condition on a later one": (
        "log: true",
        "when: {batch: 16}",
        "lr.when.batch: found a later parameter; allowed: an earlier one: none",
    ),
    "impossible condition": (
        "when: {optimizer: sgd}",
        "when: {optimizer: adam}",
        "momentum.when.optimizer: found 'adam'; allowed: a value of optimizer",
    ),
    "batch of nobody": (
        "batch_size: batch",
        "batch_size: bach",
        "batch_size: found 'bach', no parameter",
        "whole numbers of at least 1: batch (did you mean batch?)",
    ),
    "batch of text": (
        "batch_size: batch",
        "batch_size: optimizer",
        "batch_size: found 'optimizer', which is {choice",
        "always gives whole numbers",
    ),
    "batch of nothing": (
        "batch: {choice: [16, 32]}",
        "batch: {int: [0, 32]}",
        30,
        "batch_size: found 'batch', which is {int: [0, 32]}; allowed: a parameter that always gives whole "
        "numbers of at least 1",
    ),
    "list without a batch": (
        "searcher: {kind: tpe, n_startup_trials: 4}",
        "searcher:\n        kind: list\n        configs:\n        - {lr: 1, batch: 8}\n        - {lr: 0.1}",
        "searcher.configs.1: found {lr: 0.1}; allowed: one that gives training.batch_size, which is batch",
    ),
    "no number of steps": (
        "max_workers: 8",
        "max_workers: 8\n        min_steps_per_epoch: -1",
        "scheduler.min_steps_per_epoch: found -1; allowed: greater than or equal to 0",
    ),
    "first comers of a rung where all wait": (
        "max_workers: 8",
        "max_workers: 8\n        variant: synchronous\n        min_compared: 4",
        "scheduler.min_compared: found 4, with variant: synchronous, where all wait for each other",
    ),
    "a ladder that cannot grow": (
        "max_t: 8",
        "max_t: {auto: 2}",
        "scheduler.max_t: found {auto: 2}, which leaves no rung to add; allowed: more than 2 (",
    ),
    "a ladder that grows with all of a rung": (
        "max_t: 8",
        "max_t: {auto: 8}\n        variant: synchronous",
        "scheduler.max_t: found {auto: 8}, with variant: synchronous; allowed: a number, or another variant",
        20,
    ),
    "a ladder of another kind": (
        "max_t: 8",
        "max_t: {atuo: 8}",
        "scheduler.max_t: found {atuo: 8}; allowed: a number of epochs, or {auto: N}",
    ),
    "a ladder to no number": (
        "max_t: 8",
        "max_t: {auto: soon}",
        "scheduler.max_t: found 'soon'; allowed: a whole number",
    ),
    "a first rung above the cap": (
        "grace_period: 1\n        max_t: 8",
        "grace_period: 9\n        max_t: {auto: 8}",
        "grace_period: found 9, which is more than max_t; allowed: 1 to 8 (max_t)",
        19,
    ),
    "an early end where the order of reports decides nothing": (
        "max_t: 8",
        "max_t: 8\n        variant: synchronous\n        early: curve",
        "scheduler.early: found 'curve', with variant: synchronous, where the order of reports decides",
    ),
    "an early end that is never sure": (
        "max_t: 8",
        "max_t: 8\n        early: {kind: curve, quantile: 1}",
        "scheduler.early.quantile: found 1; allowed: less than 1",
    ),
    "a batch of another kind": (
        "max_workers: 8",
        "max_workers: 8\n        batch: constantly",
        "scheduler.batch: found 'constantly'; allowed: doubling, constant, measured (did you mean constant?)",
    ),
    "a batch that is a list": (
        "max_workers: 8",
        "max_workers: 8\n        batch: [constant]",
        "scheduler.batch: found ['constant']; allowed: doubling, constant, measured",
    ),
    "a tracker's option that is a list": (
        "seed: 7",
        "seed: 7\ntrack: [{kind: mlflow, project: [mine]}]",
        "track.0.project: found ['mine']; allowed: a string",
    ),
    "warm-up that may be missing": (
        "{initial: 1}",
        "{initial: momentum}",
        "warmup.initial: found 'momentum', which is",
    ),
    "no training": (
        "        python: steps:train\n",
        "",
        "tune.training: found neither; allowed: exactly one of python, command",
    ),
    "placeholder": (
        "python: steps:train",
        "command: train.py --lr {lr} --to {util}",
        "training.command",
        "found the placeholder {util}, which nothing fills in",
        "(did you mean until?)",
    ),
    "duplicate key": (
        "mode: min",
        "mode: min\n      mode: max",
        "tune.mode: found the key a second time (first in line 15)",
    ),
    "variable": ("name: cfd", "name: ${NOBODY_SET_THIS}", "name: found ${NOBODY_SET_THIS}, which is not set"),
    "no such function": (
        "steps:prepare",
        "steps:prepar",
        "found steps:prepar, but steps has no prepar",
        "(did you mean prepare?)",
    ),
    "no such module": ("steps:prepare", "stepz:prepare", "found stepz, but there is no module stepz"),
    "argument unknown": (
        "{grid: 64, viscosity: 2e-3}",
        "{grid: 64, viscositi: 2e-3}",
        "with.viscositi: found an argument that steps:simulate does not take; allowed: seed, grid, viscosity "
        "(did you mean viscosity?)",
    ),
    "argument missing": (
        "steps:evaluate",
        "steps:train",
        "evaluate.python: found steps:train(trial), which needs trial; allowed: parameters "
        "that needs, with or for_each give: best, data",
    ),
    "tab": ("  prepare:\n", "\tprepare:\n", "found broken YAML: a tab"),
    "bracket": ("{initial: 1}", "{initial: [1}", "found broken YAML"),
}


def _line_of_change(text: str, old: str, new: str) -> set[int]:
    """The line that the change ends in; for what was taken out, the lines that may miss it."""
    start = text[: text.index(old)].count("\n") + 1
    return {start + new.rstrip("\n").count("\n")} if new else set(range(start - 2, start + 2))


def _mistakes(study: Path, *overrides: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(InvalidFileError) as error:
        load_study(study, overrides, environment={})
    return error.value.mistakes


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_line_what_was_found_and_what_is_allowed(folder: Path, name: str) -> None:
    old, new, *expected = MISTAKES[name]
    words = [w for w in expected if isinstance(w, str)]
    study = folder / "study.yaml"
    good = study.read_text()
    assert good.count(old) == 1, "the change must be unambiguous"
    study.write_text(good.replace(old, new))
    (mistake,) = (m for m in _mistakes(study) if words[0] in f"{m}\n")
    for word in words:
        assert word in f"{mistake}\n"
    assert mistake.file == str(study)
    assert mistake.line in ([n for n in expected if isinstance(n, int)] or _line_of_change(good, old, new))


def test_a_good_study_has_no_mistakes(folder: Path) -> None:
    study = load_study(folder / "study.yaml", environment={})
    assert list(study.stages) == ["simulate", "prepare", "tune", "evaluate"]


def test_all_mistakes_of_a_file_come_at_once_in_the_order_of_its_lines(folder: Path) -> None:
    study = folder / "study.yaml"
    text = study.read_text()
    changed = ["unknown key", "wrong word", "grace period", "needs nobody", "impossible condition"]
    changed += ["batch of nobody", "choice twice", "variable", "no whole number", "bounds"]
    for name in changed:
        old, new, *_ = MISTAKES[name]
        text = text.replace(old, new)
    study.write_text(text.replace("steps:evaluate", "steps:evalute"))
    mistakes = _mistakes(study)
    for name in changed:
        assert any(MISTAKES[name][2] in str(m) for m in mistakes), name
    assert any("steps has no evalute" in str(m) for m in mistakes)
    assert len(mistakes) == len(changed) + 1, "nothing is said twice"
    assert [m.line for m in mistakes] == sorted(m.line for m in mistakes)


def test_a_mistake_reads_as_one_sentence(folder: Path) -> None:
    study = folder / "study.yaml"
    study.write_text(study.read_text().replace("max_t: 8", "max_t: 8\n        reduction_factr: 3"))
    (mistake,) = _mistakes(study)
    assert str(mistake) == (
        f"{study}:21: stages.tune.tune.scheduler.reduction_factr: found an unknown key; allowed: kind, "
        "variant, grace_period, max_t, reduction_factor, min_compared, early, scaling_factor, brackets, "
        "num_workers, max_workers, batch, min_steps_per_epoch, growth (did you mean reduction_factor?)"
    )


NEAREST = "which 8 replicas cannot share (scheduler.batch: constant); allowed:"


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"batch_size: batch": "batch_size: 20"}, "training.batch_size", f"found 20, {NEAREST} 16 or 24"),
        ({"batch_size: batch": "batch_size: 3"}, "training.batch_size", f"found 3, {NEAREST} 8"),
        (
            {"{choice: [16, 32]}": "{choice: [16, 36, 32]}"},
            "search_space.batch.choice.1",
            f"found 36, {NEAREST} 32 or 40",
        ),
        ({"{choice: [16, 32]}": "12"}, "search_space.batch", f"found 12, {NEAREST} 8 or 16"),
        (
            {"{choice: [16, 32]}": "{int: [16, 32]}"},
            "search_space.batch.int",
            f"found [16, 32] in steps of 1, {NEAREST} multiples of 8 as low and as step",
        ),
    ],
)
def test_a_batch_that_fixed_replicas_cannot_share_is_named_with_the_nearest_that_they_can(
    folder: Path, changes: dict[str, str], key: str, words: str
) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("max_workers: 8", "max_workers: 8\n        batch: constant")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    study.write_text(text)
    (mistake,) = _mistakes(study)
    assert str(mistake).endswith(f"tune.{key}: {words}")
    assert str(mistake).startswith(f"{study}:")


MEASURED = "max_workers: 8\n        batch: measured"


def test_the_first_step_of_a_measured_batch_must_be_shared_evenly(folder: Path) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("max_workers: 8", f"num_workers: 2\n        {MEASURED}")
    study.write_text(text.replace("batch_size: batch", "batch_size: 12"))
    load_study(study, environment={})
    study.write_text(text.replace("batch_size: batch", "batch_size: 6"))
    (mistake,) = _mistakes(study)
    found = "found 6, which 8 replicas cannot share (scheduler.batch: measured); allowed: 4 or 8"
    assert str(mistake).endswith(found)


@pytest.mark.parametrize(
    ("scheduler", "training", "why"),
    [
        (MEASURED, "reduce: ddp", "reduce: ddp"),
        (MEASURED, "sharding: fsdp", "sharding: fsdp"),
        (
            MEASURED.replace("max_workers: 8", "max_workers: 9") + "\n        scaling_factor: 3",
            "reduce: auto",
            "9 replicas",
        ),
    ],
)
def test_a_batch_that_is_measured_where_no_one_sees_single_gradients_is_a_mistake(
    folder: Path, scheduler: str, training: str, why: str
) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("max_workers: 8", scheduler)
    study.write_text(text.replace("batch_size: batch", f"batch_size: 36\n        {training}"))
    mistakes = [str(m) for m in _mistakes(study)]
    allowed = "allowed: doubling or constant: no one sees the gradients of single replicas"
    assert [m for m in mistakes if m.endswith(f"scheduler.batch: found measured, with {why}; {allowed}")]


def test_batches_that_fixed_replicas_can_share_are_no_mistake(folder: Path) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("max_workers: 8", "max_workers: 8\n        batch: constant")
    for sizes in ("{choice: [16, 32]}", "{int: [16, 64], step: 8}", "{int: [24, 24]}", "40"):
        study.write_text(text.replace("{choice: [16, 32]}", sizes))
        load_study(study, environment={})


def test_a_circle_of_stages_is_named(folder: Path) -> None:
    study = folder / "study.yaml"
    study.write_text(
        """\
name: circle
stages:
  first: {command: "echo {x}", needs: {x: third}}
  second: {command: "echo {x}", needs: {x: first}}
  third: {command: "echo {x}", for_each: {x: second}}
  apart: {command: echo}
"""
    )
    (mistake,) = _mistakes(study)
    needed = mistake.found.removeprefix("a circle: ").split(" needs ")
    assert needed[0] == needed[-1]
    assert sorted(needed[1:]) == ["first", "second", "third"]
    before = {"first": "third", "second": "first", "third": "second"}
    assert all(before[a] == b for a, b in itertools.pairwise(needed))


def test_a_stage_that_needs_itself_is_a_circle(folder: Path) -> None:
    study = folder / "study.yaml"
    study.write_text('name: a\nstages:\n  own: {command: "echo {x}", needs: {x: own}}\n')
    assert "a circle: own needs own" in [m.found for m in _mistakes(study)]


COARSE = """\
  coarse:
    tune:
      metric: val_loss
      mode: min
      num_samples: 4
      scheduler: {kind: asha, max_t: 2}
      searcher: {kind: random}
      search_space: {SPACE}
      training: {python: "steps:train", batch_size: 16}
"""


@pytest.mark.parametrize(
    ("known", "is_refused"),
    [
        ("{width: {int: [4, 64]}, depth: 3}", True),
        ("{width: {int: [4, 64]}, lr: 0.01}", False),
        ("{width: {int: [4, 64]}, optimizer: {choice: [sgd, lion]}}", False),
    ],
)
def test_a_warm_start_from_a_search_of_other_things_is_refused(
    folder: Path, known: str, is_refused: bool
) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("kind: tpe,", "kind: tpe, warm_start: coarse,")
    study.write_text(text + COARSE.replace("{SPACE}", known))
    if not is_refused:
        assert load_study(study, environment={}).stages["tune"].stages_before == ("prepare", "coarse")
        return
    (mistake,) = _mistakes(study)
    assert mistake.line == text[: text.index("warm_start")].count("\n") + 1
    assert str(mistake).endswith(
        "stages.tune.tune.searcher.warm_start: found 'coarse', which knows nothing that tune searches: "
        "width, depth; allowed: a search with one of the parameters lr, batch, optimizer, momentum"
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{lrr: 0.1}", "lrr: found no parameter; allowed: a parameter of the search space: lr,"),
        ("{lr: 99}", "lr: found 99; allowed: a value of lr: "),
    ],
)
def test_a_first_configuration_that_cannot_be_is_refused(folder: Path, config: str, words: str) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("kind: tpe,", f"kind: tpe, first: [{{lr: 0.01}}, {config}],")
    study.write_text(text)
    (mistake,) = _mistakes(study)
    assert mistake.line == text[: text.index("first:")].count("\n") + 1
    assert f"searcher.first.1.{words}" in str(mistake)


def test_a_constant_is_nothing_to_begin_a_search_with(folder: Path) -> None:
    study = folder / "study.yaml"
    text = study.read_text().replace("kind: tpe,", "kind: tpe, warm_start: coarse,")
    study.write_text(
        text.replace("batch: {choice: [16, 32]}", "batch: 16") + COARSE.replace("{SPACE}", "{batch: 8}")
    )
    assert "a search with one of the parameters lr, optimizer, momentum" in str(_mistakes(study)[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "an empty file"),
        (b"# only a comment\n", "an empty file"),
        (b"- a\n- b\n", "found ['a', 'b']; allowed: a YAML mapping"),
        (b"just words", "found 'just words'; allowed: a YAML mapping"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", "bytes that are not text"),
        (b"name: \x00\x01", "bytes that are not YAML"),
        (b"a: 1\n---\nb: 2\n", "broken YAML"),
        (b"name: !!python/object:os.system x\n", "with the tag"),
        (b"name: &a [*a]\n", "an alias of something it is part of"),
        (b"1: x\n", "the key 1, which is not a string"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "too many to read"),
    ],
)
def test_a_file_that_is_no_study_gives_one_clear_error(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    study = tmp_path / "study.yaml"
    if content is not None:
        study.write_bytes(content)
    mistakes = _mistakes(study)
    assert words in str(mistakes[0])
    assert str(study) in str(mistakes[0])


def test_a_folder_is_no_study(tmp_path: Path) -> None:
    assert "an unreadable file" in str(_mistakes(tmp_path)[0])
