from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from parsl_rasda.orchestration.events import EpochReported, JobEnded, StartJob
from parsl_rasda.orchestration.job_specs import trial_seed
from parsl_rasda.protocol import Checkpoint, EpochReport, JobResult, JobSpec
from parsl_rasda.types import JobId, Outcome, PilotId, Placement, TrialId
from tests.unit.orchestration.small_study import SITE, desk, tune

JOB = JobId(TrialId("0003"), 2)


def leave_behind(directory: Path, epochs: int, report: JobResult | None = None) -> Path:
    folder = directory / "trials/0003/attempt-2"
    folder.mkdir(parents=True)
    lines = [
        EpochReport(
            JOB.trial,
            JOB.attempt,
            epoch,
            {"loss": 1.0 / epoch},
            2.0,
            Checkpoint(f"c{epoch}", epoch),
            100.0 + epoch,
        )
        for epoch in range(1, epochs + 1)
    ]
    (folder / "epochs.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report.to_json()))
    return folder


def test_only_what_is_not_known_yet_is_told(tmp_path: Path) -> None:
    leave_behind(tmp_path, 3)
    found = list(desk(tmp_path, tune()).events_on_disk([(JOB, SITE, 2)], at=999.0))
    assert found == [EpochReported(103.0, JOB, 3, {"loss": 1 / 3}, 2.0, Checkpoint("c3", 3))]


def test_a_job_ended_when_it_says_so_not_when_somebody_looked(tmp_path: Path) -> None:
    report = JobResult(JOB.trial, JOB.attempt, Outcome.PREEMPTED, 1, "lease", Checkpoint("c1", 1), at=140.0)
    leave_behind(tmp_path, 1, report)
    found = list(desk(tmp_path, tune()).events_on_disk([(JOB, SITE, 1)], at=999.0))
    assert found == [JobEnded(140.0, JOB, Outcome.PREEMPTED, "lease", "c1")]


def test_nothing_on_disk_is_nothing_to_tell_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    orders = desk(tmp_path, tune())
    assert list(orders.events_on_disk([(JOB, SITE, 0)], at=1.0)) == []
    folder = leave_behind(tmp_path, 2)
    file = folder / "epochs.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    (folder / "report.json").write_text('{"outcome": "rea')
    assert [e.epoch for e in orders.events_on_disk([(JOB, SITE, 0)], at=1.0)] == [1]


def test_a_trials_seed_depends_on_nothing_but_the_study_and_itself() -> None:
    seeds = {trial_seed(seed, TrialId(f"{trial:04d}")) for seed in range(10) for trial in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(7, TrialId("0000")) == trial_seed(7, TrialId("0000"))


def test_a_job_is_told_what_its_trial_falls_back_to_and_what_it_is_to_remove(tmp_path: Path) -> None:
    gone = JobId(TrialId("0001"), 4)
    orders = replace(desk(tmp_path, tune()), obsolete=lambda site: (gone,) if site == SITE else ())
    start = StartJob(JOB, {"lr": 0.1}, Placement(SITE, PilotId("a-0"), ()), 2, 4, ((0, 1),), "c2")
    spec = orders.build(start, interactive=True, deadline=None, falls_back_to="c1")
    assert (spec.resume_from, spec.falls_back_to, spec.obsolete) == ("c2", "c1", (gone,))
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    old = {k: v for k, v in spec.to_json().items() if k not in {"falls_back_to", "obsolete"}}
    assert JobSpec.from_json(old) == replace(spec, falls_back_to=None, obsolete=())
