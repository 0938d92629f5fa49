"""The world size decides how fast a trial trains, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_launch import epochs_of, metrics_of, report_of
from width_cases import differing, distance, final_state, legs_of, train_everywhere, written_shards

from parsl_rasda.runtime.checkpoints.checkpoint import read_header

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(300)]

EPOCHS = 4
CASES = {
    "exact-sgd": {"optimizer": "sgd", "samples": 203, "dtype": "float32"},
    "exact-adamw": {"optimizer": "adamw", "samples": 194, "dtype": "float32", "lr": 2e-3},
    "exact-sgd-double": {"optimizer": "sgd", "samples": 203, "dtype": "float64"},
    "exact-fewer-samples-than-replicas": {"optimizer": "sgd", "samples": 3, "dtype": "float32"},
    "exact-shards": {"optimizer": "sgd", "samples": 203, "dtype": "float32", "shards": True},
    "exact-spectral-norm": {"optimizer": "sgd", "samples": 203, "dtype": "float32", "spectral": True},
    "exact-one-batch": {"optimizer": "sgd", "samples": 203, "dtype": "float32", "batches": 1},
    "exact-rivals": {"rivals": True, "samples": 203, "dtype": "float32"},
    "exact-rivals-fewer-samples-than-replicas": {"rivals": True, "samples": 3, "dtype": "float32"},
    "exact-sgd-twenty-epochs": {"optimizer": "sgd", "samples": 203, "dtype": "float32", "epochs": 20},
    "exact-adamw-twenty-epochs": {
        **{"optimizer": "adamw", "samples": 194, "dtype": "float32", "lr": 2e-3},
        "epochs": 20,
    },
    "ddp-sgd": {"optimizer": "sgd", "samples": 203, "dtype": "float64"},
    "ddp-rivals": {"rivals": True, "samples": 203, "dtype": "float64"},
    "ddp-adamw": {"optimizer": "adamw", "samples": 194, "dtype": "float64", "lr": 2e-3},
    "ddp-one-batch": {"optimizer": "sgd", "samples": 203, "dtype": "float64", "batches": 1, "plain": True},
    "ddp-fewer-samples-than-replicas": {"optimizer": "sgd", "samples": 3, "dtype": "float64"},
}
EXACT = [name for name in CASES if name.startswith("exact")]
DDP = [name for name in CASES if name.startswith("ddp")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("width")
    shards = {"shards": written_shards(root, CASES["exact-shards"])}
    cases = {name: {**case, **shards} if "shards" in case else case for name, case in CASES.items()}
    return train_everywhere(root, cases, EPOCHS)


def noise_of(*orders):
    return [report.noise for order in orders for report in epochs_of(order)]


def assert_same_bits(left, right):
    assert differing(final_state(left), final_state(right)) == []


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("world_size", [2, 4])
def test_exact_reduction_gives_the_same_bits_at_any_width(trained, name, world_size) -> None:
    alone, wide = trained[name, "W=1"], trained[name, f"W={world_size}"]
    assert len(metrics_of(alone)) == CASES[name].get("epochs", EPOCHS)
    assert metrics_of(alone) == metrics_of(wide)
    assert_same_bits(alone, wide)
    assert noise_of(alone) == noise_of(wide)
    assert None not in noise_of(alone)


@pytest.mark.parametrize("name", EXACT)
def test_a_trial_resized_from_1_to_2_to_4_ranks_gives_the_bits_of_an_undisturbed_one(trained, name) -> None:
    legs = legs_of(trained, name)
    assert metrics_of(trained[name, "W=1"]) == metrics_of(*legs)
    assert_same_bits(trained[name, "W=1"], legs[-1])
    assert noise_of(trained[name, "W=1"]) == noise_of(*legs)


@pytest.mark.parametrize("name", DDP)
def test_plain_reduction_in_double_precision_agrees_to_rounding(trained, name) -> None:
    alone = final_state(trained[name, "W=1"])
    for other in (trained[name, "W=2"], trained[name, "W=4"], legs_of(trained, name)[-1]):
        apart = {key: distance(tensor, alone[key]) for key, tensor in final_state(other).items()}
        assert max(apart.values()) < 2e-14, apart


def test_the_middle_leg_stopped_in_the_middle_of_an_epoch(trained) -> None:
    report = report_of(trained["exact-sgd", "legs", 1])
    header = read_header(Path(report.checkpoint.path))
    assert (report.outcome, report.epoch, header["epoch"], header["step"]) == ("preempted", 2, 2, 2)


def test_reports_name_the_slot_of_every_rank(trained) -> None:
    assert epochs_of(trained["exact-sgd", "W=4"])[0].slots == ("n0:0", "n0:1", "n0:2", "n0:3")


def test_the_trials_learn_something(trained) -> None:
    losses = [m["train_loss"] for m in metrics_of(trained["exact-sgd", "W=4"])]
    assert losses[-1] < losses[0]
