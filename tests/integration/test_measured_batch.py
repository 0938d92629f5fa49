"""A study whose batch follows its measured noise decides the same, to the last bit, whatever it runs on."""

from __future__ import annotations

import json

import pytest
from command_line import finish, start

from parsl_rasda.orchestration.events import EpochReported, StartJob
from parsl_rasda.orchestration.journal import read
from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study.loading import load_study

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = """
import torch

def train(trial):
    torch.manual_seed(1)
    x, noise = torch.randn(512, 4), torch.randn(512, 1)
    y = x.sum(1, keepdim=True) + 2 * noise  # little to learn, soon: then gradients are noise
    model, _ = trial.prepare(torch.nn.Linear(4, 1), torch.optim.SGD, lr=trial.config["lr"])
    loss = torch.nn.MSELoss()
    for _ in trial.epochs():
        for a, b in trial.batches((x, y)):
            trial.step(loss(model(a), b))
        shard = trial.shard((x, y))
        with torch.no_grad():
            each = [(model(a) - b).square().flatten() for a, b in shard]
        trial.report(val_loss=trial.mean(torch.cat(each)))
"""
STUDY = """
name: noisy
seed: 7
tune:
  metric: val_loss
  num_samples: 4
  scheduler:
    {{variant: synchronous, max_t: 4, max_workers: 4, batch: measured, min_steps_per_epoch: 0,
     growth: {growth}}}
  search_space: {{lr: {{float: [0.01, 0.05]}}}}
  training: {{python: "train:train", batch_size: 8}}
"""
SITE = "provider: {{type: LocalProvider}}\naccelerator: cpu\ngpus_per_node: {slots}\n"


def ran(folder, slots, growth):
    (folder / "train.py").write_text(TRAIN)
    (folder / f"{slots}.yaml").write_text(SITE.format(slots=slots))
    (folder / f"study-{slots}.yaml").write_text(STUDY.format(growth=growth))
    words = ("run", f"study-{slots}.yaml", "--site", f"{slots}.yaml", "--dir", f"run-{slots}", "--json")
    code, out, err = finish(start(folder, *words), 280)
    assert code == 0, err
    return folder / f"run-{slots}", json.loads(out)


def told_of(run):
    records = list(read(run / "journal.jsonl"))
    epochs = [r.event for r in records if isinstance(r.event, EpochReported)]
    starts = [i for r in records for i in r.instructions if isinstance(i, StartJob)]
    reports = {(e.job.trial, e.epoch): (e.metrics, e.noise, e.samples) for e in epochs}
    return reports, {i.placement.world_size for i in starts}


def test_it_grows_alike_on_one_slot_and_on_four_and_a_replay_decides_the_same(tmp_path) -> None:
    (one, first), (four, second) = ran(tmp_path, 1, "elastic"), ran(tmp_path, 4, "strict")
    (reports, narrow), (others, wide) = told_of(one), told_of(four)
    assert reports == others
    assert (narrow, wide) == ({1}, {1, 2, 4})
    assert first["best"]["metric"] == second["best"]["metric"]
    ladder = [(r["reached"], r["batches"], r["noise_scale"]) for r in first["rungs"]]
    assert ladder == [(r["reached"], r["batches"], r["noise_scale"]) for r in second["rungs"]]
    assert [noise["trials"] for _, _, noise in ladder] == [reached for reached, _, _ in ladder]
    assert ladder[0][1] == [1]
    assert max(ladder[-1][1]) > 1, "a batch of 8 is small beside the noise"
    for run, slots in ((one, 1), (four, 4)):
        tune = load_study(tmp_path / f"study-{slots}.yaml").tune_stages["tune"].tune
        replayed = replay_search(RunDirectory(run), "noisy", tune)
        assert replayed.difference == ""
        assert [r["batches"] for r in replayed.summary()["rungs"]] == [batches for _, batches, _ in ladder]
