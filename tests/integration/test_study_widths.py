"""A whole study decides the same, to the last bit, whatever it runs on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import finish, start

from parsl_rasda.orchestration.events import EpochReported, ObserveTrial, StartJob, TrialFinished
from parsl_rasda.orchestration.journal import read
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors
from tests.workflow_folder import workflow_folder

with workflow_folder("cfd_defiltering") as CFD:
    from prepare import write_shards
    from simulate import simulate

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

# The tuning of workflows/cfd_defiltering, smaller: half the grid, an eighth of the samples, 4 epochs.
STUDY = """
name: cfd_small
seed: 7
with: {{data: {data}}}
tune:
  metric: val_loss
  mode: min
  num_samples: 6
  scheduler: {{variant: synchronous, max_t: 4, max_workers: 4, {growth}}}
  search_space:
    lr: {{float: [1.0e-4, 1.0e-1], log: true}}
    optimizer: {{choice: [sgd, adamw]}}
    momentum: {{float: [0.0, 0.99], when: {{optimizer: sgd}}}}
    weight_decay: {{float: [1.0e-6, 1.0e-2], log: true}}
    width: {{choice: [6, 8]}}
    activation: {{choice: [relu, gelu, silu, tanh]}}
  training:
    python: train:train
    batch_size: 4
    warmup: {{initial: 1, rescale: 1}}
    clip_norm: 1.0
  estimates: {{epoch_s: 0.3, restart_s: 0.1, efficiency: 0.85}}
"""
SITE = """
provider: {{type: LocalProvider}}
accelerator: cpu
gpus_per_node: {slots}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    fields = [simulate(seed, 32, 64, 4.0e-3, str(folder)) for seed in (0, 100)]
    return write_shards(fields, str(folder), filter_width=4.0)


@pytest.fixture(scope="module")
def studies(tmp_path_factory, data):
    """Run the study on 1, 2 and 4 slots; the last one waits for the full width of every trial."""
    folder = tmp_path_factory.mktemp("studies")
    for module in ("train.py", "model.py"):
        shutil.copy(CFD / module, folder)
    return {
        slots: ran(folder, data, slots, f"growth: {'strict' if slots == 4 else 'elastic'}")
        for slots in (1, 2, 4)
    }


def ran(folder, data, slots, growth, name=""):
    name = name or str(slots)
    (folder / f"{slots}.yaml").write_text(SITE.format(slots=slots))
    (folder / f"study-{name}.yaml").write_text(STUDY.format(data=json.dumps(data), growth=growth))
    words = ("run", f"study-{name}.yaml", "--site", f"{slots}.yaml", "--dir", f"run-{name}", "--json")
    code, out, err = finish(start(folder, *words), 280)
    assert code == 0, err
    return folder / f"run-{name}", json.loads(out)


def decisions_of(run):
    """Return what was decided of each trial, and what for: all but when, and on which GPUs."""
    records = list(read(run / "journal.jsonl"))
    told = [i for record in records for i in record.instructions]
    epochs = [r.event for r in records if isinstance(r.event, EpochReported)]
    return {
        "configurations": {i.job.trial: i.config for i in told if isinstance(i, StartJob)},
        "schedules": {(i.job.trial, i.schedule) for i in told if isinstance(i, StartJob)},
        "reports": {(e.job.trial, e.epoch): (e.metrics, e.noise) for e in epochs},
        "rungs": {(i.trial, i.epoch): i.metric for i in told if isinstance(i, ObserveTrial)},
        "ends": {i.trial: (i.state, i.metric, i.reason) for i in told if isinstance(i, TrialFinished)},
    }


def widths_of(run):
    instructions = [i for record in read(run / "journal.jsonl") for i in record.instructions]
    return {i.placement.world_size for i in instructions if isinstance(i, StartJob)}


def verdict(summary):
    trials = {t["trial"]: (t["state"], t["epoch"], t["metric"]) for t in summary["trial_list"]}
    best = summary["best"]
    return trials, (best["trial"], best["metric"], best["epoch"], best["config"])


@pytest.mark.timeout(600)
def test_survivors_best_and_metric_are_the_same_on_one_two_and_four_slots(studies) -> None:
    one, two, four = (verdict(summary) for _, summary in studies.values())
    assert one == two == four
    states = [state for state, _, _ in one[0].values()]
    assert sorted(states) == ["completed", *["stopped"] * 5]


def test_the_trials_did_run_at_different_widths_and_were_forked(studies) -> None:
    assert widths_of(studies[1][0]) == {1}
    assert widths_of(studies[4][0]) == {1, 2, 4}
    logs = [log.read_text() for run, _ in studies.values() for log in run.glob("trials/*/*/log.txt")]
    assert logs
    assert not any("plain start" in log for log in logs)


@pytest.fixture(scope="module")
def asha(tmp_path_factory, data):
    """Run the study by ASHA with a constant batch, on 2 slots; returns its folder, run and summary."""
    folder = tmp_path_factory.mktemp("constant")
    for module in ("train.py", "model.py"):
        shutil.copy(CFD / module, folder)
    return folder, *ran(folder, data, 2, "batch: constant, kind: asha, growth: none", name="asha")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("slots", "method", "widths"),
    [
        (1, "growth: elastic", {1}),
        (2, "growth: elastic, num_workers: 2", {2}),
        (4, "growth: strict", {1, 2, 4}),
    ],
)
def test_with_a_constant_batch_rasda_is_asha_on_more_gpus(asha, data, slots, method, widths) -> None:
    """Decisions, metrics of every epoch and the winner's weights are the same bits."""
    folder, first, expected = asha
    second, found = ran(folder, data, slots, f"batch: constant, kind: rasda, {method}")
    assert verdict(found) == verdict(expected)
    assert [t["history"] for t in found["trial_list"]] == [t["history"] for t in expected["trial_list"]]
    assert decisions_of(second) == decisions_of(first)
    one, other = (read_tensors(Path(summary["best"]["checkpoint"])) for summary in (expected, found))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert (widths_of(first), widths_of(second)) == ({1}, widths)
