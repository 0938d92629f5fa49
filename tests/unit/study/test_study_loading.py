from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from parsl_rasda.errors import Diagnostic, InvalidFileError, InvalidSettingError
from parsl_rasda.search.space import SearchSpace
from parsl_rasda.study import (
    CommandStage,
    GlobusSiteSpec,
    ParslSiteSpec,
    PythonStage,
    StudySpec,
    TrainingSpec,
    TuneSpec,
    TuneStage,
    dump_site,
    dump_study,
    load_site,
    load_study,
)
from parsl_rasda.study.addresses import InterfaceSpec
from parsl_rasda.study.document import dump_document

SHORT = """\
name: short
with: {data: digits}
tune:
  metric: accuracy
  mode: max
  num_samples: 8
  scheduler: {max_t: 4}
  search_space: {lr: {float: [1e-3, 1e-1], log: true}, width: 32}
  training: {command: "python train.py --lr {lr:.3e} --data {data} --to {until}", batch_size: width}
"""


@pytest.fixture
def short(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(SHORT)
    return tmp_path / "study.yaml"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder that is the current one."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_a_study_becomes_stages_of_three_kinds(folder: Path) -> None:
    study = load_study(folder / "study.yaml")
    simulate, prepare, tune = (study.stages[n] for n in ("simulate", "prepare", "tune"))
    assert isinstance(simulate, PythonStage)
    assert simulate.for_each == {"seed": (0, 1, 2)}
    assert simulate.with_ == {"grid": 64, "viscosity": 0.002}
    assert prepare.stages_before == ("simulate",)
    assert isinstance(tune, TuneStage)
    assert tune.tune.searcher.options == {"n_startup_trials": 4}
    assert tune.tune.search_space["momentum"] == {"float": [0.0, 0.99], "when": {"optimizer": "sgd"}}
    assert tune.tune.scheduler.growth == "elastic"
    assert list(study.tune_stages) == ["tune"]


def test_a_single_tune_at_the_top_is_a_study_of_one_stage(short: Path) -> None:
    study = load_study(short)
    stage = study.stages["tune"]
    assert isinstance(stage, TuneStage)
    assert stage.with_ == {"data": "digits"}
    assert stage.tune.training.command == (
        "python",
        "train.py",
        "--lr",
        "{lr:.3e}",
        "--data",
        "{data}",
        "--to",
        "{until}",
    )


def test_mistakes_of_a_single_tune_keep_the_keys_of_the_file(short: Path) -> None:
    short.write_text(SHORT.replace("mode: max", "mode: most"), encoding="utf-8")
    with pytest.raises(InvalidFileError) as error:
        load_study(short)
    assert str(error.value) == f"{short}:5: tune.mode: found 'most'; allowed: min, max"


def test_a_command_may_be_a_list_or_a_text(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("name: a\nstages:\n  one: {command: \"tar xf 'my data.tar' -C {directory}\"}\n")
    one = load_study(study).stages["one"]
    assert isinstance(one, CommandStage)
    assert one.command == ("tar", "xf", "my data.tar", "-C", "{directory}")
    study.write_text("name: a\nstages:\n  one: {command: [sleep, 3, 'a b']}\n")
    one = load_study(study).stages["one"]
    assert isinstance(one, CommandStage)
    assert one.command == ("sleep", "3", "a b")


def test_overrides_change_values_and_create_what_is_missing(folder: Path) -> None:
    overrides = [
        "tune.num_samples=64",
        "tune.estimates.epoch_s=1e-1",
        "stages.simulate.with.grid=128",
        "stages.simulate.for_each.seed.1=${SEED}",
        "tune.training.batch_size=8",
        "name=other",
    ]
    study = load_study(folder / "study.yaml", overrides, environment={"SEED": "11"})
    tune, simulate = study.stages["tune"], study.stages["simulate"]
    assert isinstance(tune, TuneStage)
    assert (study.name, tune.tune.num_samples, tune.tune.estimates.epoch_s) == ("other", 64, 0.1)
    assert tune.tune.training.batch_size == 8
    assert simulate.with_["grid"] == 128
    assert simulate.for_each["seed"] == (0, 11, 2)


def test_overrides_reach_a_single_tune(short: Path) -> None:
    study = load_study(short, ["tune.scheduler.max_t=16", "with.data=cifar"])
    stage = study.tune_stages["tune"]
    assert (stage.tune.scheduler.max_t, stage.with_["data"]) == (16, "cifar")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tune.num_samples=few",
            "--set tune.num_samples=few: tune.num_samples: found 'few'; allowed: a whole number",
        ),
        ("tune.num_sample=4", "tune.num_sample: found an unknown key"),
        ("num_samples=4", "found a key that a study has further down (did you mean tune.num_samples?)"),
        ("tune.scheduler.max_t", "found no key=value; allowed: key=value, for example tune.num_samples=64"),
        ("name.first=x", "found name is 'cfd', which has no parts"),
        ("stages.simulate.for_each.seed.7=1", "seed is a list of 3"),
        ("tune.mode=[", "--set tune.mode=[: the file: found broken YAML"),
        ("tune.scheduler={max_t: 0}", "tune.scheduler.max_t: found 0"),
        ("tune.seed=${NOBODY}", "${NOBODY}, which is not set"),
    ],
)
def test_a_wrong_override_is_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(InvalidFileError) as error:
        load_study(folder / "study.yaml", [override], environment={})
    assert message in str(error.value)
    assert f"--set {override}" in str(error.value)


def test_the_short_key_needs_exactly_one_stage_that_optimises(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("name: a\nstages: {one: {command: ls}}\n")
    with pytest.raises(InvalidFileError, match="no stage that optimises"):
        load_study(study, ["tune.num_samples=2"])


def test_targets_need_not_be_here_when_they_are_not_checked(folder: Path) -> None:
    (folder / "steps.py").unlink()
    with pytest.raises(InvalidFileError, match="no module steps"):
        load_study(folder / "study.yaml")
    assert load_study(folder / "study.yaml", check_targets=False).name == "cfd"


def test_a_spec_made_in_code_is_checked_in_the_same_words() -> None:
    with pytest.raises(ValueError, match="found 'b', no stage; allowed: a stage of this study: none"):
        StudySpec.model_validate({"name": "x", "stages": {"a": {"command": ["ls"], "needs": {"x": "b"}}}})


def test_training_settings_take_the_values_of_a_trial() -> None:
    spec = TrainingSpec.model_validate(
        {"python": "m:f", "batch_size": "batch", "warmup": {"initial": "w", "rescale": 1}, "clip_norm": 1}
    )
    training = spec.resolve({"batch": 64, "w": 2})
    assert (training.batch_size, training.warmup_initial, training.warmup_rescale) == (64, 2.0, 1.0)
    assert training.clip_norm == 1.0
    for wrong in ({}, {"batch": 0, "w": 1}, {"batch": "many", "w": 1}, {"batch": True, "w": 1}):
        with pytest.raises(InvalidSettingError, match=r"training\.batch_size"):
            spec.resolve(wrong)


# --------------------------------------------------------------------------------- round trip

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda n: n != "directory")
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.just("${HOME}"),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3),
    max_leaves=6,
)
bounds = st.tuples(st.floats(0.001, 1), st.floats(2, 9)).map(list)
parameters = st.one_of(
    st.fixed_dictionaries({"float": bounds}, optional={"log": st.booleans()}),
    st.tuples(st.integers(1, 4), st.integers(5, 9)).map(lambda b: {"int": list(b)}),
    st.lists(st.integers() | texts, min_size=1, unique_by=repr).map(lambda c: {"choice": c}),
    st.integers(1, 9),
)


@st.composite
def studies(draw: st.DrawFn) -> dict[str, object]:
    max_t = draw(st.integers(1, 64))
    tune = {
        "metric": draw(names),
        "mode": draw(st.sampled_from(["min", "max"])),
        "num_samples": draw(st.integers(1, 99)),
        "scheduler": {"max_t": max_t, "grace_period": draw(st.integers(1, max_t)), "variant": "promotion"},
        "searcher": {"kind": "list", "configs": draw(st.lists(st.dictionaries(names, json), max_size=2))},
        "search_space": draw(st.dictionaries(names, parameters, min_size=1, max_size=4)),
        "training": {"python": "a.b:c", "batch_size": 4, "warmup": {"initial": draw(st.floats(0, 5))}},
        "estimates": {"efficiency": draw(st.floats(0.51, 1))},
    }
    stages: dict[str, object] = {"tune_it": {"tune": tune}}
    for name in draw(st.lists(names.filter(lambda n: n != "tune_it"), unique=True, max_size=3)):
        arguments = draw(st.lists(names, unique=True, min_size=3, max_size=3))
        stages[name] = {
            "python": "a.b:c",
            "with": {arguments[0]: draw(json)},
            "for_each": {arguments[1]: draw(st.lists(json, min_size=1, max_size=3))},
            "needs": {arguments[2]: "tune_it"},
            "site": draw(st.none() | st.just("jureca")),
        }
    return {"name": draw(names), "seed": draw(st.integers(0, 9)), "stages": stages}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(plain=studies())
def test_a_dumped_study_is_loaded_as_it_was(tmp_path: Path, plain: dict[str, object]) -> None:
    study = StudySpec.model_validate(plain)
    (tmp_path / "again.yaml").write_text(dump_study(study), newline="")
    again = load_study(tmp_path / "again.yaml", check_targets=False, environment={"HOME": "other"})
    assert again == study
    assert list(again.stages) == list(study.stages)


# --------------------------------------------------------------------------------------- sites

SLURM = """\
provider:
  type: SlurmProvider
  partition: ${PARTITION:-booster}
  nodes_per_block: 4
  walltime: 01:30:00
  worker_init: |
    source $HOME/venv/bin/activate
    echo $${SLURM_JOBID}
gpus_per_node: 4
pilots: 2
mpi_launcher: srun
checkpoint_margin: 300
environment: {NCCL_DEBUG: WARN}
"""


def test_a_site_keeps_parsls_own_names_and_knows_its_gpus(tmp_path: Path) -> None:
    (tmp_path / "jureca.yaml").write_text(SLURM)
    site = load_site(tmp_path / "jureca.yaml", environment={})
    assert isinstance(site, ParslSiteSpec)
    assert site.name == "jureca"
    assert site.provider.options["walltime"] == "01:30:00"
    assert site.provider.options["partition"] == "booster"
    assert "${SLURM_JOBID}" in str(site.provider.options["worker_init"])
    assert (site.nodes_per_pilot, site.slots_per_pilot, site.slots) == (4, 16, 32)
    assert site.checkpoint_margin_s == 300
    (tmp_path / "dumped.yaml").write_text(dump_site(site))
    assert load_site(tmp_path / "dumped.yaml", environment={}) == site


def test_a_globus_compute_site_is_told_by_its_endpoint(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(
        "endpoint_id: 4b116d3c-1703-4f8f-9f6f-39921e5864df\n"
        "user_endpoint_config: {partition: gpu, note: null}\nnodes: 2\ngpus_per_node: 8\n"
    )
    site = load_site(tmp_path / "far.yaml")
    assert isinstance(site, GlobusSiteSpec)
    assert site.slots == 16
    (tmp_path / "dumped.yaml").write_text(dump_site(site))
    assert load_site(tmp_path / "dumped.yaml") == site


def test_what_an_endpoint_decides_itself_is_no_setting_of_its_site(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(
        "endpoint_id: 4b116d3c-1703-4f8f-9f6f-39921e5864df\nrelease_idle_after: 60\n"
    )
    with pytest.raises(InvalidFileError, match="idle_s in user_endpoint_config"):
        load_site(tmp_path / "far.yaml")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "SlurmProvider",
            "SlurmProvder",
            2,
            "found 'SlurmProvder'; allowed: a name in parsl.providers: LocalProvider",
        ),
        ("partition:", "partiton:", 3, "an argument that Parsl's SlurmProvider does not have"),
        ("nodes_per_block: 4", "max_blocks: 4", 4, "found a setting that is ours; allowed: `pilots`"),
        ("01:30:00", "90", 5, "walltime: found 90; allowed: HH:MM:SS, for example 01:30:00"),
        ("${PARTITION:-booster}", "${PARTITION}", 3, "${PARTITION}, which is not set in the environment"),
        (
            "gpus_per_node: 4",
            "gpus_per_node: all",
            9,
            "found 'all'; allowed: a whole number from 1 to 1024, or auto",
        ),
        ("pilots: 2", "pilots: 2\nnodes: 3", 11, "nodes: found 3, but nodes_per_block is 4"),
        (
            "mpi_launcher: srun",
            "mpi_launcher: slurm",
            11,
            "allowed: hydra, openmpi, srun, process, pals, flux, ibrun",
        ),
        ("NCCL_DEBUG: WARN", "NCCL_DEBUG: 1", 13, "environment.NCCL_DEBUG: found 1; allowed: a string"),
        (
            "provider:",
            "providr:",
            1,
            "allowed: exactly one of provider, endpoint_id, backend (did you mean provider?)",
        ),
        ("provider:", "endpoint_id: x\nprovider:", 1, "found provider and endpoint_id"),
        ("pilots: 2", "address: 3", 10, ": address: found 3; allowed: an address, or {interface: NAME}"),
        ("pilots: 2", "address: {interface: a b}", 10, ": address.interface: found 'a b'; allowed: letters"),
        ("pilots: 2", "address: {device: ib0}", 10, ": address.interface: found nothing; allowed: Its name"),
    ],
)
def test_a_mistake_in_a_site_names_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    (tmp_path / "site.yaml").write_text(SLURM.replace(old, new))
    with pytest.raises(InvalidFileError) as error:
        load_site(tmp_path / "site.yaml", environment={})
    assert [m.line for m in error.value.mistakes if words in str(m)] == [line], str(error.value)


@pytest.mark.parametrize("name", ["bond0", "ib0.8001", "br-storage"])
def test_an_interface_may_have_any_name_that_linux_gives_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "site.yaml").write_text(f"{SLURM}\naddress: {{interface: {name}}}\n")
    site = load_site(tmp_path / "site.yaml", environment={})
    assert isinstance(site, ParslSiteSpec)
    assert site.address == InterfaceSpec(interface=name)
    (tmp_path / "dumped.yaml").write_text(dump_site(site))
    assert load_site(tmp_path / "dumped.yaml") == site


@pytest.mark.parametrize("name", ["local", "workstation"])
def test_the_sites_that_we_ship_are_found_by_name_from_anywhere(elsewhere: Path, name: str) -> None:
    site = load_site(name)
    assert site.name == name
    assert site.slots is None


def test_a_site_beside_the_user_comes_first(elsewhere: Path) -> None:
    (elsewhere / "site_configs").mkdir()
    (elsewhere / "site_configs" / "local.yaml").write_text(
        "provider: {type: LocalProvider}\ngpus_per_node: 3\n"
    )
    assert load_site("local").slots == 3


def test_a_site_that_nobody_knows_lists_those_there_are(elsewhere: Path) -> None:
    with pytest.raises(InvalidFileError) as error:
        load_site("workstatoin")
    assert "local" in str(error.value)
    assert "(did you mean workstation?)" in str(error.value)


def test_a_site_file_that_is_not_there_is_named(elsewhere: Path) -> None:
    with pytest.raises(InvalidFileError, match=r"nowhere/site\.yaml: the file: found no such file"):
        load_site("nowhere/site.yaml")


def test_reading_files_loads_nothing_heavy() -> None:
    code = (
        "import sys, parsl_rasda.study as s; s.load_site('local'); "
        "print([m for m in ('torch', 'parsl', 'optuna', 'networkx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------- with the layer above

odd = st.sampled_from(
    [None, True, 0, 1, -1, 0.5, 2.0, "sgd", "", [], [1], [1, 4], [4, 1], [0.1, 0.3], ["a", "a"], [1, True]]
)
forms = st.dictionaries(
    st.sampled_from(["float", "int", "choice", "constant", "log", "step", "when", "lo"]),
    odd | st.dictionaries(st.sampled_from(["a", "b", "c"]), odd, max_size=2),
    max_size=3,
)


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(space=st.dictionaries(st.sampled_from(["a", "b", "c"]), odd | forms, min_size=1, max_size=3))
def test_a_search_space_that_is_accepted_here_can_be_searched(space: dict[str, object]) -> None:
    tune = {
        "metric": "loss",
        "num_samples": 1,
        "scheduler": {"max_t": 1},
        "search_space": space,
        "training": {"python": "a:b"},
    }
    try:
        accepted = TuneSpec.model_validate(tune).search_space
    except ValidationError:
        return
    assert set(SearchSpace.from_mapping(accepted).parameters) == set(space)


anything = st.recursive(
    odd
    | st.text(max_size=3)
    | st.sampled_from(["{", "{x}", "a:b", "tune", "auto", 10**400, -(10**400), 1e308]),
    lambda v: (
        st.lists(v, max_size=2)
        | st.dictionaries(st.sampled_from(["tune", "float", "choice", "when", "x", ""]), v, max_size=2)
    ),
    max_leaves=4,
)


def _paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(p for key, child in children for p in _paths(child, (*path, key)))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("which", ["study", "site"])
def test_no_wrong_value_anywhere_gives_anything_but_an_error_with_a_place(
    folder: Path, which: str, data: st.DataObject
) -> None:
    text = (folder / "study.yaml").read_text() if which == "study" else SLURM
    plain = yaml.safe_load(text.replace("2e-3", "0.002").replace("1e-4", "0.0001").replace("1e-1", "0.1"))
    path = data.draw(st.sampled_from([p for p in _paths(plain) if p]))
    inside = plain
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = data.draw(anything)
    (folder / "mutated.yaml").write_text(dump_document(plain))
    try:
        (load_study if which == "study" else load_site)(folder / "mutated.yaml", environment={})
        mistakes: tuple[Diagnostic, ...] = ()
    except InvalidFileError as error:
        mistakes = error.mistakes or (Diagnostic((), "an error without a mistake", ""),)
    assert all(m.line >= 1 and m.key for m in mistakes)


@pytest.mark.parametrize(
    ("accelerator", "held"),
    [("cuda", "GPUs"), ("rocm", "GPUs"), ("xpu", "GPUs"), ("cpu", "cores"), (None, "GPUs")],
)
def test_one_machine_is_one_pilot(tmp_path: Path, accelerator: str | None, held: str) -> None:
    text = "provider: {type: LocalProvider}\npilots: 2\n"
    file = tmp_path / "site.yaml"
    file.write_text(text + (f"accelerator: {accelerator}\n" if accelerator else ""))
    with pytest.raises(InvalidFileError) as error:
        load_site(file)
    assert (
        f"site.yaml:2: pilots: found 2 with LocalProvider, each of which would hold the same {held}"
        in str(error.value)
    )
    file.write_text(text + "accelerator: none\n")
    assert load_site(file).pilots == 2, "slots that are only logical"
