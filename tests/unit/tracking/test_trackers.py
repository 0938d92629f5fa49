"""What trackers have written is what the journal says, over deaths and resumptions, and whatever fails."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy import float32

from parsl_rasda.orchestration.curves import Curve, Curves, curves_of
from parsl_rasda.orchestration.journal import Record, read
from parsl_rasda.study.observers import TrackerSpec
from parsl_rasda.tracking.base import Origin, Tracker
from parsl_rasda.tracking.observer import Tracking
from parsl_rasda.tracking.registry import trackers_of

ORIGIN = Origin("rehearsed", "abc123", "val_loss")
Found = dict[str, dict[str, list[tuple[int, float]]]]


@pytest.fixture
def records(rehearsals, tmp_path: Path) -> list[Record]:
    run = tmp_path / "run"
    rehearsals.into(run, rehearsals.study_of(), also={"accuracy": lambda epoch: 1 - 1 / epoch})
    return list(read(run / "journal.jsonl"))


def expected(records: list[Record]) -> Found:
    found: Found = {}
    for trial, curve in curves_of(records).trials.items():
        for epoch, point in curve.epochs:
            for name, value in point.metrics.items():
                found.setdefault(trial, {}).setdefault(name, []).append((epoch, value))
    return found


def as_text(found: Found) -> str:
    """Return found metrics as text: NaN is not itself, and TensorBoard's numbers have 32 bits."""
    return str(
        {
            trial: {
                name: [(e, float(float32(v))) for e, v in curve] for name, curve in sorted(metrics.items())
            }
            for trial, metrics in sorted(found.items())
        }
    )


def in_tensorboard(folder: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Found = {}
    for place in sorted((folder / "tensorboard").iterdir()):
        (file,) = place.iterdir()
        loaded = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in loaded.Tags()["scalars"]:
            curve = [(e.step, e.value) for e in loaded.Scalars(name)]
            found.setdefault(place.name, {})[name] = curve
    return found


def in_mlflow(uri: str) -> Found:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("rehearsed")
    found: Found = {}
    for run in client.search_runs([experiment.experiment_id]):
        trial = run.data.tags["trial"]
        assert trial not in found, "there is one run for each trial"
        found[trial] = {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
    return found


def in_wandb(folder: Path) -> Found:
    import wandb

    from tests.unit.tracking.wandb_files import history_in

    wandb.teardown()  # its own process writes a moment later
    found: Found = {}
    for file in (folder / "wandb").glob("offline-run-*/run-*.wandb"):
        trial = file.stem.rpartition("-")[2].partition(".")[0]
        assert trial not in found, "there is one run for each trial"
        for row in history_in(file):
            for name, value in row.items():
                if not name.startswith("_") and name != "epoch":
                    found.setdefault(trial, {}).setdefault(name, []).append((int(row["epoch"]), value))
    return found


KINDS: dict[str, tuple[Callable[[Path], TrackerSpec], Callable[[Path], Found]]] = {
    "tensorboard": (lambda _: TrackerSpec.model_validate("tensorboard"), in_tensorboard),
    "mlflow": (
        lambda folder: TrackerSpec.model_validate({"mlflow": f"sqlite:///{folder / 'server.db'}"}),
        lambda folder: in_mlflow(f"sqlite:///{folder / 'server.db'}"),
    ),
    "wandb": (lambda _: TrackerSpec.model_validate({"wandb": {"project": "mine"}}), in_wandb),
}


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their libraries, about each other
        yield KINDS[request.param]


def tracker_of(kind: Any, folder: Path) -> Tracker:
    folder.mkdir(exist_ok=True)
    ((_, make),) = trackers_of([kind[0](folder)], ORIGIN, folder)
    return make()


def test_whatever_was_written_before_a_death_in_the_end_all_is_there_once(
    kind: Any, records: list[Record], tmp_path: Path
) -> None:
    folder = tmp_path / "there"
    for died_after in (len(records) // 3, 2 * len(records) // 3, len(records), len(records)):
        tracker, curves = tracker_of(kind, folder), Curves()
        due: dict[str, Curve] = {}
        for record in records[:died_after]:
            touched = curves.touched(record.event, record.instructions)
            due |= {curve.trial: curve for curve in touched}
        for curve in due.values():
            tracker.write(curve)
        tracker.close()  # a death is in the integration tests: a library's threads end with their process
    assert as_text(kind[1](folder)) == as_text(expected(records))


def test_epoch_by_epoch_it_comes_to_the_same(kind: Any, records: list[Record], tmp_path: Path) -> None:
    folder = tmp_path / "there"
    tracker, curves = tracker_of(kind, folder), Curves()
    for record in records:
        for curve in curves.touched(record.event, record.instructions):
            tracker.write(curve)
    tracker.close()
    assert as_text(kind[1](folder)) == as_text(expected(records))


def test_of_epochs_that_were_trained_again_the_last_report_is_shown(
    kind: Any, records: list[Record], tmp_path: Path
) -> None:
    folder, curves = tmp_path / "there", curves_of(records)
    curve = max(curves.trials.values(), key=lambda c: len(c.points))
    tracker = tracker_of(kind, folder)
    state, curve.state = curve.state, None
    curve.points[1] = curve.points[1]._replace(
        steps=((0.25, {"batch_loss": 3.0}), (0.5, {"batch_loss": 2.0}))
    )
    tracker.write(curve)
    last = max(curve.points)
    point = curve.points[last]
    curve.points[last] = point._replace(at=point.at + 5, metrics={**point.metrics, "val_loss": 77.0})
    curve.state = state
    tracker.write(curve)
    tracker.close()
    logged = kind[1](folder)[curve.trial]
    (name,) = [name for name in logged if name.endswith("batch_loss")]
    assert [value for _, value in logged[name]] == [3.0, 2.0], "what was logged within an epoch is there, too"
    found = logged["val_loss"]
    assert found[-1] == (last, 77.0)
    assert list(dict(found)) == sorted(curve.points)


def test_tensorboard_goes_on_after_a_torn_record(records: list[Record], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    kind = KINDS["tensorboard"]
    curves = curves_of(records)
    for curve in curves.trials.values():
        tracker_of(kind, tmp_path).write(curve)
    for file in (tmp_path / "tensorboard").glob("*/*"):
        file.write_bytes(file.read_bytes()[:-7])
    for curve in curves.trials.values():
        tracker_of(kind, tmp_path).write(curve)
    assert as_text(in_tensorboard(tmp_path)) == as_text(expected(records))


class Flaky:
    """Fails the first so many times."""

    def __init__(self, failures: float) -> None:
        self.failures = failures
        self.written: dict[str, int] = {}
        self.is_closed = threading.Event()

    def write(self, curve: Curve) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("the server is down")
        self.written[curve.trial] = len(curve.points)

    def close(self) -> None:
        self.is_closed.set()


def test_a_tracker_that_fails_is_asked_again_and_one_that_never_works_costs_nothing(
    records: list[Record], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky, dead, good = Flaky(2), Flaky(math.inf), Flaky(0)

    def missing() -> Tracker:
        raise ImportError("no such library")

    made = [("flaky", lambda: flaky), ("dead", lambda: dead), ("good", lambda: good), ("missing", missing)]
    monkeypatch.setattr("parsl_rasda.tracking.observer._FIRST_RETRY_S", 0.01)
    with caplog.at_level(logging.WARNING), Tracking(made, records[:5]) as tracking:
        for record in records[5:]:
            tracking.add(record.event, record.instructions)
    lengths = {t: len(c.points) for t, c in curves_of(records).trials.items()}
    assert good.written == lengths
    assert flaky.is_closed.is_set()
    said = [r.getMessage() for r in caplog.records]
    assert "dead cannot be written, the study goes on: ConnectionError: the server is down" in said
    assert sum("the server is down" in line and line.startswith("dead") for line in said) == 1
    assert any("missing" in line and "no such library" in line for line in said)
    assert f"dead lacks {len(lengths)} trials; `export` can add them" in said


def test_nobody_waits_for_a_tracker_that_hangs(records: list[Record]) -> None:
    hung = threading.Event()

    class Hanging(Flaky):
        def write(self, curve: Curve) -> None:
            hung.wait(60)

    with Tracking([("hanging", lambda: Hanging(0))], (), patience_s=0.05) as tracking:
        for record in records:
            tracking.add(record.event, record.instructions)
    hung.set()
