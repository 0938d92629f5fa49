"""What each integration must show: in one process, and in a study that widens and is interrupted."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import torch
import trainer_functions
from backend_tools import eventually
from command_line import finish, start

from parsl_rasda.orchestration.events import EpochReported, JobEnded, StartJob
from parsl_rasda.orchestration.journal import read
from parsl_rasda.protocol import Training
from parsl_rasda.runtime import Trial
from parsl_rasda.runtime.attempt.attempt import PreemptRequested
from parsl_rasda.runtime.engine.seeding import seed_start
from parsl_rasda.types import Outcome
from tests.unit.runtime.attempts import attempt_in

STUDY = """
name: trainers
seed: 3
tune:
  metric: {metric}
  mode: min
  num_samples: 1
  scheduler: {{variant: synchronous, max_t: 3, max_workers: 2, growth: strict, min_steps_per_epoch: 0}}
  searcher: {{kind: random}}
  search_space:
    lr: {{float: [1.0e-3, 1.0e-2], log: true}}
  training:
    python: trainer_functions:{function}
    batch_size: 2
    warmup: {{initial: 1, rescale: 1}}
"""
SITE = """
provider: {type: LocalProvider}
accelerator: cpu
gpus_per_node: 2
"""


def seen_by(folder):
    """Return what ranks have trained on: lists of epoch, replicas and samples, by rank."""
    seen = {}
    for path in sorted(folder.glob("scratch/seen-*.jsonl")):
        seen[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    return seen


def trained_alone(folder, function, *, metric="val_loss", leaves_after=None, channel=None, **changes):
    """Train in this process; returns the trial, and whether it has left as it was told to."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"config": {"lr": 0.01}, "until": 3, "max_epochs": 3, "training": Training(batch_size=4)}
    attempt = attempt_in(folder, metric=metric, **{**given, **changes})
    attempt.channel = channel
    trial = Trial(attempt)
    see = trainer_functions.Witness.see

    def see_and_tell(witness, numbers) -> None:
        see(witness, numbers)
        if sum(len(lines) for lines in seen_by(folder).values()) == leaves_after:
            signal.raise_signal(signal.SIGTERM)

    seed_start(attempt.spec.seed)  # as a rank does
    trainer_functions.Witness.see = see_and_tell
    before = signal.signal(signal.SIGTERM, lambda *_: attempt.preempt("SIGTERM"))
    try:
        function(trial)
        if attempt.outcome is None:
            trial.finish()
    except PreemptRequested:
        return attempt, True
    finally:
        trainer_functions.Witness.see = see
        signal.signal(signal.SIGTERM, before)
    return attempt, False


def check_that_an_interrupted_trial_goes_on_at_its_next_step(tmp_path, function, metric="val_loss") -> None:
    """Two replicas on one rank: the same samples in the same order, and the same losses up to rounding."""
    whole, _ = trained_alone(tmp_path / "whole", function, metric=metric)
    assert [report.epoch for report in whole.history] == [1, 2, 3]
    assert {report.samples for report in whole.history} == {trainer_functions.SAMPLES}
    first, has_left = trained_alone(
        tmp_path / "first", function, metric=metric, leaves_after=21
    )  # of 16 micro-batches an epoch
    assert has_left
    saved = first.checkpoints[-1]
    assert saved.name == "epoch-000001-step-00000003", (
        "a step has two micro-batches, and ends before it leaves"
    )
    second, _ = trained_alone(tmp_path / "second", function, metric=metric, epoch=1, resume_from=str(saved))
    legs = seen_by(tmp_path / "first")["seen-0"] + seen_by(tmp_path / "second")["seen-0"]
    assert legs == seen_by(tmp_path / "whole")["seen-0"]
    for epoch in range(3):
        counted = Counter(n for e, _, numbers in legs if e == epoch for n in numbers)
        assert counted == Counter(range(trainer_functions.SAMPLES))
    reports = [*first.history, *second.history]
    assert [report.epoch for report in reports] == [1, 2, 3]
    for report, expected in zip(reports, whole.history, strict=True):
        torch.testing.assert_close(
            torch.tensor(report.metrics[metric]), torch.tensor(expected.metrics[metric])
        )


def check_that_a_loop_that_stops_by_itself_completes_its_trial(tmp_path, function, metric="val_loss") -> None:
    attempt, _ = trained_alone(tmp_path, function, metric=metric, config={"lr": 0.01, "stops": True})
    assert [report.epoch for report in attempt.history] == [1]
    assert attempt.is_finished
    assert [path.name for path in attempt.checkpoints] == ["epoch-000001"]


class Controller:
    """A controller that lets a trial go on, with twice the replicas."""

    is_deaf = False

    def __init__(self, *answers) -> None:
        self.answers = [*answers]

    def send(self, op, message=None) -> None:
        """Hear a message."""

    def answer(self, timeout_s, unless):
        return self.answers.pop(0)


def check_that_a_rung_is_crossed_alive(tmp_path, function) -> None:
    """The replicas grow in mid-training; steps have twice the samples from then on."""
    controller = Controller({"op": "go", "until": 2, "replicas": 2}, {"op": "leave"})
    attempt, _ = trained_alone(
        tmp_path, function, until=1, schedule=((0, 1),), interactive=True, channel=controller
    )
    assert attempt.outcome is Outcome.REACHED
    assert [report.epoch for report in attempt.history] == [1, 2]
    assert not controller.answers
    lines = seen_by(tmp_path)["seen-0"]
    assert [(epoch, replicas) for epoch, replicas, _ in lines] == [(0, 1)] * 16 + [(1, 2)] * 16
    for epoch in range(2):
        counted = Counter(n for e, _, numbers in lines if e == epoch for n in numbers)
        assert counted == Counter(range(trainer_functions.SAMPLES))


def check_that_a_study_widens_is_interrupted_and_resumes(folder: Path, function: str, metric: str) -> None:
    """Two ranks of gloo in mid-study; each sample once an epoch, before and after the interruption."""
    gate = folder / "slow"
    gate.touch()
    shutil.copy(trainer_functions.__file__, folder)
    (folder / "study.yaml").write_text(STUDY.format(function=function, metric=metric))
    (folder / "site.yaml").write_text(SITE)
    offline = {"HF_HUB_OFFLINE": "1"}
    process = start(
        folder, "run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json", environment=offline
    )
    wide = folder / "run" / "trials"

    def has_begun_wide() -> bool:
        return process.poll() is not None or any(wide.glob("*/attempt-*/scratch/seen-1.jsonl"))

    eventually(has_begun_wide, "a trial trains on two ranks", deadline_s=120)
    process.send_signal(signal.SIGINT)
    code, _, said = finish(process)
    assert code == 130, said
    gate.unlink()
    code, out, said = finish(start(folder, "resume", "run", "--json", environment=offline))
    assert code == 0, said
    summary = json.loads(out)
    check_the_record(folder / "run", summary)


def check_the_record(run: Path, summary) -> None:
    records = list(read(run / "journal.jsonl"))
    starts = [i for r in records for i in r.instructions if isinstance(i, StartJob)]
    ends = [r.event for r in records if isinstance(r.event, JobEnded)]
    best = summary["best"]["trial"]
    widths = [i.placement.world_size for i in starts if i.job.trial == best]
    assert widths == [1, 2, 2], "one GPU, two, and two again after the interruption"
    left = [e for e in ends if e.job.trial == best and e.outcome is Outcome.PREEMPTED]
    assert left, "it was told to leave"
    assert "-step-" in str(left[-1].checkpoint), "in the middle of an epoch"
    epochs = [r.event for r in records if isinstance(r.event, EpochReported) and r.event.job.trial == best]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    counts = Counter()
    for attempt in sorted((run / "trials" / best).glob("attempt-*")):
        for rank in seen_by(attempt).values():
            counts.update((epoch, number) for epoch, _, numbers in rank for number in numbers)
    assert counts == Counter(
        (epoch, number) for epoch in range(3) for number in range(trainer_functions.SAMPLES)
    )
