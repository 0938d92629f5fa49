"""A run of real trainings is verified at another width, and a forged model is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import finish, start

from parsl_rasda import StudyResult
from parsl_rasda.runtime.checkpoints.checkpoint import read_header, read_tensors, write_checkpoint
from tests.workflow_folder import workflow_folder

with workflow_folder("minimal") as MINIMAL:
    pass

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

SITE = "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: 2\n"
SETTINGS = ("num_samples=3", "scheduler.num_workers=2", "scheduler.max_t=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study of the template on two cores, whose trials all train with two replicas and keep all."""
    folder = tmp_path_factory.mktemp("verified")
    for name in ("study.yaml", "train.py"):
        shutil.copy(MINIMAL / name, folder)
    (folder / "site.yaml").write_text(SITE)
    settings = [w for s in SETTINGS for w in ("--set", f"tune.{s}")]
    settings += ["--set", "tune.training.keep_checkpoints=all"]
    code, _, err = finish(
        start(folder, "run", "study.yaml", "--site", "site.yaml", "--dir", "run", *settings)
    )
    assert code == 0, err
    return folder / "run"


def verified(run, stretches):
    """Return exit code and document of a verification, and what it said in the meantime."""
    words = ("verify", run, "--stretches", str(stretches), "--json")
    code, out, err = finish(start(run.parent, *words))
    assert out, err
    return code, json.loads(out)["searches"]["tune"], err


def test_samples_have_the_same_bits_at_another_width(run) -> None:
    code, found, err = verified(run, 1)
    assert code == 0, found["differences"]
    assert found["decisions"]["same"] == found["decisions"]["total"] > 0
    assert found["checkpoints"]["same"] >= 3
    stretches = found["stretches"]
    assert (stretches["sampled"], stretches["same"]) == (1, 1)
    assert all(s["weights"] for s in stretches["list"])
    assert all(s["width"] != s["verified_at_width"] for s in stretches["list"])
    assert "training 1 of 1 stretches again" in err


def test_a_forged_model_is_told_and_so_is_code_that_has_changed(run, tmp_path) -> None:
    """Its seal is as good as any: only who trains it again can tell."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    best = StudyResult.open(run)["checkpoint"]
    path = copy / Path(best).relative_to(run)
    tensors, header = read_tensors(path), read_header(path)
    name = next(name for name in tensors if name.startswith("model."))
    tensors[name] = tensors[name] + 1.0e-6
    shutil.rmtree(path)
    write_checkpoint(path, tensors, header)
    shutil.move(run, run.with_name("away"))  # else the paths of the journal lead to the honest one
    try:
        code, found, _ = verified(copy, 1)
        train = run.parent / "train.py"
        text = train.read_text()
        train.write_text(text.replace("4096, seed=0", "4096, seed=2"))
        changed = verified(copy, 1)
        train.write_text(text)
    finally:
        shutil.move(run.with_name("away"), run)
    assert code == 5
    assert found["checkpoints"]["same"] == found["checkpoints"]["total"]
    assert name in found["differences"][0]
    assert changed[0] == 0
    assert changed[1]["stretches"]["sampled"] == 0
    assert "ran other code: changed since, train" in changed[1]["stretches"]["left_out"]
