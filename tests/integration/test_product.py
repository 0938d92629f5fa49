"""The product as its user has it: the command line, real Parsl, real processes, real kills."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import finish, start
from studies import SITE, kill_all, lines_of, run_study, verdict, wait_for_records, wait_until_none_is_left

from parsl_rasda.orchestration.events import JobEnded, StartJob
from parsl_rasda.orchestration.journal import read

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

STUDY = """
name: product
seed: 5
with: {epoch_s: 0.3, efficiency: 0.9, seed: 5}
tune:
  metric: val_loss
  mode: min
  num_samples: 8
  scheduler: {variant: synchronous, max_t: 4, max_workers: 4}
  search_space:
    lr: {float: [1.0e-4, 1.0e-1], log: true}
  training:
    python: workflows.emulated.train:train
  estimates: {epoch_s: 0.3, restart_s: 0.2}
"""

FAULTS = """
name: faults
seed: 5
with: {epoch_s: 0.1, seed: 5}
tune:
  metric: val_loss
  mode: min
  num_samples: 6
  max_retries: 1
  scheduler: {grace_period: 2, max_t: 2, max_workers: 2}   # nobody is stopped before it fails
  searcher:
    kind: list
    configs:
      - {lr: 0.01, fault: none}
      - {lr: 0.01, fault: raise, fault_epoch: 1}
      - {lr: 0.01, fault: nan}
      - {lr: 0.01, fault: signal}
      - {lr: 0.01, fault: exit}
      - {lr: 0.01, fault: signal, fault_attempts: 1}
  search_space:
    lr: {float: [1.0e-4, 1.0e-1], log: true}
    fault: {choice: [none, raise, nan, signal, exit]}
    fault_epoch: {int: [0, 2]}
    fault_attempts: {int: [1, 2]}
  training:
    python: workflows.emulated.train:train
"""

VANISHING = """
name: vanishing
seed: 5
tune:
  metric: val_loss
  max_retries: 0
  num_samples: 8
  scheduler: {variant: synchronous, max_t: 4, max_workers: 4, growth: none}
  search_space: {lr: {float: [1.0e-4, 1.0e-1], log: true}}
  training: {python: "vanishing:train", batch_size: 2, warmup: {rescale: 1}}
"""
TRAINING = """
import shutil
from pathlib import Path
import torch

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])

def train(trial):
    marks = Path(__file__).parent / "marks"
    mark = marks / f"{trial.directory.parent.parent.name}-{trial.epoch}"
    if trial.epoch and marks.exists() and not mark.exists():
        mark.touch()
        shutil.rmtree(trial._spec.resume_from)
    model, _ = trial.prepare(torch.nn.Linear(3, 1), torch.optim.AdamW, lr=trial.config["lr"])
    for _ in trial.epochs():
        for x, y in trial.batches((X, Y)):
            trial.step((model(x) - y).square().mean())
        losses = [(model(x) - y).square().mean().detach() for x, y in trial.shard((X, Y))]
        trial.report(val_loss=trial.mean(losses))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_studies(tmp_path)


def with_studies(folder: Path) -> Path:
    (folder / "study.yaml").write_text(STUDY)
    (folder / "faults.yaml").write_text(FAULTS)
    (folder / "logical.yaml").write_text(SITE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study comes to when nobody disturbs it."""
    code, out, err = run_study(with_studies(tmp_path_factory.mktemp("whole")), "study.yaml", "whole")
    assert code == 0, err
    return verdict(json.loads(out))


def test_failures_of_every_kind_leave_the_others_alone_and_say_why(folder: Path) -> None:
    code, out, err = run_study(folder, "faults.yaml", "faulty")
    assert code == 0, err
    summary = json.loads(out)
    reasons = {t["trial"]: (t["state"], t["reason"], t["losses"]) for t in summary["trial_list"]}
    assert reasons["0001"][0] == "failed"
    assert "EmulatedFaultError" in reasons["0001"][1]
    assert "train.py" in reasons["0001"][1]
    assert reasons["0001"][2] == 0, "an exception would be raised again: no retry"
    assert reasons["0002"][0] == "failed"
    assert "val_loss is nan" in reasons["0002"][1]
    assert reasons["0003"][0] == "failed"
    assert "SIGKILL" in reasons["0003"][1]
    assert reasons["0004"][0] == "failed"
    assert "7" in reasons["0004"][1]
    assert reasons["0005"][0] in {"completed", "stopped"}
    assert reasons["0005"][2] == 1, "it was killed once and taken up again"
    assert summary["trials"]["failed"] == 4
    code, text, _ = finish(start(folder, "status", "faulty"))
    assert code == 0
    assert all(words in text for words in ("EmulatedFaultError", "nan", "SIGKILL"))
    wait_until_none_is_left(folder)


def test_checkpoints_that_vanish_cost_no_retry_and_change_no_result(folder: Path) -> None:
    """Each is deleted the first time that it is asked for; the first ones have none before them."""
    (folder / "vanishing.yaml").write_text(VANISHING)
    (folder / "vanishing.py").write_text(TRAINING)
    (folder / "logical.yaml").write_text(SITE.replace("accelerator: none", "accelerator: cpu"))
    whole = json.loads(run_study(folder, "vanishing.yaml", "whole")[1])
    (folder / "marks").mkdir()
    code, out, err = run_study(folder, "vanishing.yaml", "disturbed")
    assert code == 0, err
    disturbed = json.loads(out)
    assert verdict(disturbed) == verdict(whole), "to the last bit"
    assert {t["losses"] for t in disturbed["trial_list"]} == {0}
    assert "resumes from an older one, or starts again" in json.dumps(disturbed["faults"])
    records = list(read(folder / "disturbed" / "journal.jsonl"))
    again = [
        i.epoch
        for r in records
        if isinstance(r.event, JobEnded) and r.event.unreadable
        for i in r.instructions
        if isinstance(i, StartJob) and i.job.trial == r.event.job.trial
    ]
    assert {0, 1} <= set(again), "from the start, and from the one before"


def test_a_study_without_one_good_trial_exits_with_3(folder: Path) -> None:
    text = FAULTS.replace("num_samples: 6", "num_samples: 1").replace("fault: none}\n", "fault: raise}\n", 1)
    (folder / "hopeless.yaml").write_text(text)
    code, out, _ = run_study(folder, "hopeless.yaml", "hopeless")
    assert code == 3
    assert json.loads(out)["state"] == "failed"


def test_ctrl_c_leaves_nothing_behind_and_resume_ends_as_if_undisturbed(
    folder: Path, undisturbed: dict[str, Any]
) -> None:
    process = start(folder, "run", "study.yaml", "--site", "logical.yaml", "--dir", "broken")
    assert wait_for_records(folder / "broken" / "journal.jsonl", 25, process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "parsl-rasda resume broken" in err
    wait_until_none_is_left(folder)
    code, resumed, err = finish(start(folder, "resume", "broken", "--json"))
    assert code == 0, err
    assert verdict(json.loads(resumed)) == undisturbed


def test_the_controller_is_killed_five_times_and_the_study_ends_as_if_undisturbed(
    folder: Path, undisturbed: dict[str, Any]
) -> None:
    journal = folder / "killed" / "journal.jsonl"
    process = start(folder, "run", "study.yaml", "--site", "logical.yaml", "--dir", "killed")
    kills, lines = 0, 0
    for step in (1, 5, 7, 9, 12):
        if not wait_for_records(journal, lines + step, process):
            break
        process.kill()
        process.communicate()
        kills += 1
        lines = lines_of(journal)
        process = start(folder, "resume", "killed", "--json")
    code, out, err = finish(process)
    assert code == 0, err
    assert kills == 5
    summary = json.loads(out)
    assert verdict(summary) == undisturbed
    assert all(t["losses"] == 0 for t in summary["trial_list"]), "a controller's death costs no retry"
    assert len(list(read(journal))) > lines
    wait_until_none_is_left(folder)


def test_a_pilot_and_its_ranks_that_die_together_cost_the_trials_nothing_but_a_retry(
    folder: Path, undisturbed: dict[str, Any]
) -> None:
    process = start(
        folder,
        "run",
        "study.yaml",
        "--site",
        "logical.yaml",
        "--dir",
        "node",
        "--set",
        "with.epoch_s=1.5",
        "--json",
    )
    assert wait_for_records(folder / "node" / "journal.jsonl", 12, process)
    kill_all(folder, b"submit_scripts", b"parsl_rasda.runtime")
    code, out, err = finish(process)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["trials"]["failed"] == 0
    assert all(t["losses"] <= 1 and t["attempts"] < 8 for t in summary["trial_list"])
    assert verdict(summary) == undisturbed
    wait_until_none_is_left(folder)
