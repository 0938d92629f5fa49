"""What `init --from` makes of a script: a study that validates, with a search space from its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from parsl_rasda.cli.init import draft
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.study import StudySpec, load_site, load_study
from parsl_rasda.study.determined import draft_experiment
from parsl_rasda.study_code.script import read_script

SCRIPT = """
import argparse, os
import not_installed_anywhere
from torch.nn.parallel import DistributedDataParallel

raise SystemExit("it must never be run")

parser = argparse.ArgumentParser()
group = parser.add_argument_group("model")
parser.add_argument("data", help="folder of samples")
parser.add_argument("-b", "--batch-size", type=int, default=64)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--resume", default="")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--lr", "--learning-rate", dest="lr", type=float, default=1e-3, help="the rate")
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=0)
group.add_argument("--hidden", type=int, default=128)
group.add_argument("--layers", default=3, type=int)
group.add_argument("--activation", choices=["relu", "tanh"], default="relu")
parser.add_argument("--amp", action=argparse.BooleanOptionalAction)
parser.add_argument("--verbose", action="store_true")
parser.add_argument("--print-every", type=int, default=10)
parser.add_argument("--sizes", nargs="+", type=int)
parser.add_argument("--out", required=True)
parser.add_argument(os.environ["X"])
print({"val_accuracy": 1.0})
"""


def drafted(folder: Path, source: str = SCRIPT) -> tuple[StudySpec, str, tuple[str, ...]]:
    (folder / "train.py").write_text(source)
    _, lacking = draft(folder / "train.py", folder)
    load_site(folder / "site.yaml", environment={})
    text = (folder / "study.yaml").read_text()
    return load_study(folder / "study.yaml", environment={}), text, lacking


def test_a_script_is_drafted_into_a_study_that_validates(tmp_path: Path) -> None:
    folder = tmp_path / "my study"
    folder.mkdir()
    study, text, lacking = drafted(folder)
    tune = study.stages["tune"].tune
    assert study.name == "my_study"
    assert tune.search_space == {
        "lr": {"float": [0.0001, 0.01], "log": True},
        "momentum": {"float": [0.0, 0.99]},
        "weight_decay": {"float": [1e-6, 0.01], "log": True},
        "hidden": {"choice": [64, 128, 256]},
        "layers": {"int": [1, 6]},
        "activation": {"choice": ["relu", "tanh"]},
    }
    assert " ".join(tune.training.command) == (
        "python -m train --learning-rate={lr} --momentum={momentum} --weight-decay={weight_decay} "
        "--hidden={hidden} --layers={layers} --activation={activation} --epochs={until} "
        "--resume={checkpoint} --out={out} --batch-size={batch_size} --seed={seed} {data}"
    )
    assert (tune.scheduler.max_t, tune.scheduler.max_workers, tune.scheduler.growth) == (20, 2, "strict")
    assert (tune.metric, tune.mode, tune.training.batch_size) == ("val_accuracy", "max", 64)
    assert study.stages["tune"].with_ == {"data": "TO BE GIVEN (str)"}
    assert "# print_every: {int: [5, 20]}  # default 10; check the bounds; to search it, add" in text
    assert "# amp: {choice: [--amp, --no-amp]}" in text
    assert "verbose" not in text
    assert "sizes" not in text
    assert len(lacking) == 1
    assert "train.py takes no 'report'" in lacking[0]
    assert '{"val_accuracy": 0.12}' in (folder / "README.md").read_text()


def test_what_the_method_must_tell_a_script_is_named_where_the_script_lacks_it(tmp_path: Path) -> None:
    _, text, lacking = drafted(tmp_path, 'p.add_argument("--alpha", type=float, default=0.5)')
    assert [sentence.split("'")[1] for sentence in lacking] == ["until", "checkpoint", "out", "report"]
    assert all(f"    # {sentence}." in text.splitlines() for sentence in lacking)
    assert "max_workers: 1" in text


def test_a_script_elsewhere_is_called_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "with {odd} name.py").write_text('p.add_argument("--lr", default=0.1)')
    draft(tmp_path / "with {odd} name.py", tmp_path / "study")
    study = load_study(tmp_path / "study" / "study.yaml", environment={})
    words = study.stages["tune"].tune.training.command
    assert words[1].format() == str(tmp_path / "with {odd} name.py")


def test_a_rate_without_a_default_is_searched_as_rates_are(tmp_path: Path) -> None:
    study, *_ = drafted(tmp_path, 'p.add_argument("--lr", type=float, required=True)')
    assert study.stages["tune"].tune.search_space == {"lr": {"float": [0.001, 0.1], "log": True}}
    assert not study.stages["tune"].with_


@pytest.mark.parametrize(
    ("source", "words"), [("if True print", "a Python script"), ("print(1)", "what could be searched")]
)
def test_a_script_without_anything_to_search_is_refused(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "train.py").write_text(source)
    with pytest.raises(InvalidSettingError, match=words):
        draft(tmp_path / "train.py", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["train.py"]


def test_an_argument_is_read_as_argparse_takes_it() -> None:
    (found,) = read_script(
        'p.add_argument("-n", "--no-cache-dir", type=float, default=3, choices=(1, 2))'
    ).arguments
    assert (found.name, found.type, found.default, found.choices) == ("no_cache_dir", "float", 3, (1, 2))


EXPERIMENT = """
name: theirs
entrypoint: python3 -m torch.distributed.launch code/fit.py --amp
hyperparameters:
  lr: {type: log, base: 10, minval: -4.0, maxval: -1.0}
  momentum: {type: double, minval: 0, maxval: 0.9}
  layers: {type: int, minval: 2, maxval: 5}
  act: {type: categorical, vals: [relu, gelu]}
  width: {type: const, val: 64}
searcher: {name: random, metric: acc, smaller_is_better: false, max_trials: 9, max_length: {batches: 900}}
resources: {slots_per_trial: 2}
checkpoint_storage: {type: s3}
"""


def test_an_experiment_of_determined_is_drafted_into_a_study_that_validates(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(EXPERIMENT)
    folder = tmp_path / "ours"
    _, lacking = draft(tmp_path / "theirs.yaml", folder)
    (folder / "fit.py").write_text("def train(trial): ...\n")
    study = load_study(folder / "study.yaml", environment={})
    tune = study.stages["tune"].tune
    assert (study.name, tune.metric, tune.mode, tune.num_samples) == ("ours", "acc", "max", 9)
    assert (tune.scheduler.num_workers, tune.max_retries, tune.searcher.kind) == (2, 5, "random")
    assert tune.search_space == {
        "lr": {"float": [0.0001, 0.1], "log": True},
        "momentum": {"float": [0.0, 0.9]},
        "layers": {"int": [2, 5]},
        "act": {"choice": ["relu", "gelu"]},
        "width": 64,
    }
    for word, sentence in zip(("fit.py", "max_t", "storage"), lacking, strict=True):
        assert word in sentence
    assert all(sentence in (folder / "README.md").read_text() for sentence in lacking)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "an experiment of Determined"),
        ("hyperparameters: {a: 1}", "`searcher`"),
        ("a: [", "YAML"),
        (EXPERIMENT.replace("type: int", "type: whole"), "hyperparameters.layers: .*log, double"),
        (EXPERIMENT.replace("minval: 2", "minval: two"), "hyperparameters.layers"),
    ],
)
def test_what_is_no_experiment_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    with pytest.raises(InvalidSettingError, match=words):
        draft(tmp_path / "theirs.yaml", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_module_of_an_experiment_is_that_of_its_entry_point() -> None:
    for entrypoint, module in (
        ("python -m fit", "fit"),
        ("python3 -m determined.launch.torch_distributed --trial model_def:MyTrial", "model_def"),
        ("[python3, src/train.py, --x]", "train"),
        ("./run.sh", "train"),
    ):
        text = re.sub("entrypoint:.*", f"entrypoint: {entrypoint}", EXPERIMENT)
        study = yaml.safe_load(draft_experiment(text, "e.yaml").study)
        assert study["tune"]["training"]["python"] == f"{module}:train"
