"""The trials of the benchmarks of quality: trained once, and as in a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from parsl_rasda.protocol import Training
from parsl_rasda.runtime.local import local_trial
from parsl_rasda.study import load_study
from parsl_rasda.user_modules import add_user_folders

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
try:
    from emulated_search import EmulatedSearch
    from rescaling import doubling, rescale_moments
    from trained_trials import Subject, TrainedTrials
finally:
    sys.path.remove(str(BENCHMARKS))

TRAIN = """
from pathlib import Path
import torch

def train(trial):
    torch.manual_seed(1)
    x = torch.randn(64, 3)
    y = x @ torch.ones(3, 1)
    model, _ = trial.prepare(torch.nn.Linear(3, 1), torch.optim.Adam, lr=trial.config["lr"])
    for _ in trial.epochs():
        for a, b in trial.batches((x, y)):
            trial.step((model(a) - b).square().mean())
        with torch.no_grad():
            errors = [(model(a) - b).square().flatten() for a, b in trial.shard((x, y))]
        trial.report(val_loss=trial.mean(torch.cat(errors)))

def evaluate(best, directory):
    return {"metric": best["metric"], "files": len([*Path(best["checkpoint"]).iterdir()])}
"""
STUDY = {
    "name": "small",
    "seed": 3,
    "stages": {
        "tune": {
            "tune": {
                "metric": "val_loss",
                "num_samples": 6,
                "scheduler": {"max_t": 4, "max_workers": 4, "variant": "synchronous", "batch": "constant"},
                "search_space": {"lr": {"float": [1e-3, 1e-1], "log": True}},
                "training": {"python": "quality_study:train", "batch_size": 8},
            }
        },
        "evaluate": {"python": "quality_study:evaluate", "needs": {"best": "tune"}},
    },
}
ADAM = Subject({"lr": 0.01}, 7, Training(batch_size=8, checkpoint_every=100))


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.delitem(sys.modules, "quality_study", raising=False)
    (tmp_path / "quality_study.py").write_text(TRAIN)
    add_user_folders([str(tmp_path)])
    return tmp_path


def trials_in(folder, **changes):
    from quality_study import train

    return TrainedTrials(folder / "trained", train, {}, "val_loss", (1, 2, 4), **changes)


def test_a_trial_in_stretches_reports_what_it_reports_in_one_go(study) -> None:
    from quality_study import train

    whole = local_trial(ADAM.config, epochs=4, seed=7, batch_size=8)
    train(whole)
    trials = trials_in(study)
    found = [trials.epoch(ADAM, ((0, 1),), epoch) for epoch in (4, 1, 2, 3)]
    assert [found[k].metric for k in (1, 2, 3, 0)] == [r.metrics["val_loss"] for r in whole.history]
    assert {epoch.samples for epoch in found} == {64}
    assert all(epoch.seconds > 0 for epoch in found)


def test_what_schedules_have_in_common_is_trained_once(study) -> None:
    trials = trials_in(study)
    trials.epoch(ADAM, ((0, 1),), 4)
    assert trials.trained == 4
    trials.epoch(ADAM, ((0, 1), (2, 2)), 4)
    assert trials.trained == 6
    again = trials_in(study)
    assert again.epoch(ADAM, ((0, 1), (2, 2)), 3) == trials.epoch(ADAM, ((0, 1), (2, 2)), 3)
    assert again.epoch(ADAM, ((0, 4, 1),), 1).noise is not None
    assert again.trained == 1


def test_the_optimizer_is_changed_once_where_the_batch_has_changed(study) -> None:
    ratios = []
    trials = trials_in(study, changes={"note": lambda _, ratio: ratios.append(ratio)})
    noted = Subject(ADAM.config, ADAM.seed, ADAM.training, "note")
    trials.epoch(noted, doubling((1, 2, 4)), 4)
    assert doubling((1, 2, 4)) == ((0, 1), (1, 2), (2, 4))
    assert ratios == [2, 2]


def test_moments_that_follow_the_batch_remember_as_many_samples() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    weight.square().sum().backward()
    adam.step()
    before = adam.state[weight]["exp_avg_sq"].clone()
    rescale_moments(adam, 4)
    (group,) = adam.param_groups
    assert group["betas"] == pytest.approx((0.6, 0.96))
    assert group["eps"] == pytest.approx(5e-9)
    assert torch.equal(adam.state[weight]["exp_avg_sq"], before / 4)
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    rescale_moments(sgd, 16)
    assert sgd.param_groups[0]["momentum"] == 0


def test_an_emulated_search_decides_by_what_is_really_trained(study) -> None:
    """Judged synchronously with a constant batch, RASDA ends as ASHA does, and sooner."""
    found = {}
    for kind in ("asha", "rasda"):
        scheduler = STUDY["stages"]["tune"]["tune"]["scheduler"]
        scheduler |= {"kind": kind, "growth": "none" if kind == "asha" else "elastic"}
        file = study / f"{kind}.yaml"
        file.write_text(json.dumps(STUDY))
        search = EmulatedSearch(load_study(file, environment={}), study / "trained")
        usage = search.run()
        ends = {t.id: (t.state, dict(t.history)) for t in search.machine.trials.values()}
        found[kind] = ends, usage.makespan_s(), search.trained.trained, search
    assert found["asha"][0] == found["rasda"][0]
    assert found["asha"][2] == 6 + 3 + 2
    assert found["rasda"][2] == 0
    ends, _, _, search = found["rasda"]
    winner = min(ends, key=lambda t: (-max(ends[t][1]), ends[t][1][max(ends[t][1])]))
    metric = ends[winner][1][4]
    best = {"trial": winner, "metric": metric, "epoch": 4}
    assert search.evaluated(best)["metric"] == metric
    assert search.evaluated(best)["files"] > 0
