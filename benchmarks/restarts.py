"""How long a trial stands still when it is resized, and when it crosses a rung at the same width.

    python benchmarks/restarts.py [--repeats 20] [--ray PYTHON] [--out benchmarks/results/restarts.json]

Real Parsl, mpiexec and gloo ranks on this machine: from the report at the rung (in the old ranks) to
the first step done (in the new ones), both by the clock of the machine. ``--ray`` names a Python that has
`ray[tune]` and torch: Ray Tune's ResourceChangingScheduler is timed over the same span.

The claims, medians: a resize takes at most 0.4 s to 2 ranks and 0.6 s to 4, a rung at the same width 50 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
WIDTHS = (2, 4)
LIMITS_S = {"resize_to_2": 0.4, "resize_to_4": 0.6, "same_width": 0.05}


# ------------------------------------------------------------------------------------------ on the ranks


def train(trial):
    """A small convolutional network; notes when the first step of each epoch is done."""
    import torch
    from torch import nn

    model, _ = trial.prepare(
        nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
            nn.Linear(512, 10),
        ),
        torch.optim.SGD,
        lr=0.01,
    )
    data = torch.randn(128, 3, 16, 16), torch.randint(0, 10, (128,))
    for epoch in trial.epochs():
        for index, (x, y) in enumerate(trial.batches(data)):
            trial.step(nn.functional.cross_entropy(model(x), y))
            if index == 0 and trial.is_main:
                (trial.directory / f"first-{epoch}").write_text(str(time.time()), encoding="utf-8")
        trial.report(loss=0.0)


# -------------------------------------------------------------------------------------- on the controller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--ray", type=Path, help="a Python with ray[tune] and torch")
    parser.add_argument("--cold", action="store_true", help="time plain starts too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from claims import conclude

    with tempfile.TemporaryDirectory() as folder:
        result = {
            "what": "from the report at a rung to the first step done, seconds",
            "forked": measure(Path(folder) / "forked", arguments.repeats, warm_start=True),
        }
        if arguments.cold:
            result["started"] = measure(Path(folder) / "started", 3, warm_start=False)
    if arguments.ray:
        script = str(HERE.with_name("restarts_ray.py"))
        words = (arguments.ray, script, "--repeats", str(arguments.repeats))
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=1800)
        result["ray"] = json.loads(done.stdout.splitlines()[-1])
        ours = result["forked"]["resize_to_2"]["median_s"]
        result["ray_over_ours"] = {
            name: round(found["median_s"] / ours, 1)
            for name, found in result["ray"].items()
            if isinstance(found, dict)
        }
    claims = {
        f"{name} takes at most {most_s} s": result["forked"][name]["median_s"] <= most_s
        for name, most_s in LIMITS_S.items()
    }
    conclude(result, claims, arguments.out)


def measure(directory: Path, repeats: int, *, warm_start: bool) -> dict[str, object]:
    """Return the restarts to each width, and rungs crossed on two ranks."""
    from parsl_rasda.backends.registry import build_backend
    from parsl_rasda.orchestration.backend import BackendContext
    from parsl_rasda.orchestration.events import PilotStarted, RequestPilot
    from parsl_rasda.study.parsl_site import ParslSiteSpec
    from parsl_rasda.testing.backends import EventLog
    from parsl_rasda.types import PilotId, SiteName

    site = ParslSiteSpec.model_validate(
        {
            "name": "here",
            "provider": {"type": "LocalProvider"},
            "accelerator": "cpu",
            "gpus_per_node": max(WIDTHS),
            "warm_start": warm_start,
        }
    )
    context = BackendContext(directory, python_path=(HERE.parents[1],))
    runner, log = build_backend(site, context), EventLog(180.0)
    runner.open(log.post)
    try:
        runner.request_pilot(RequestPilot(PilotId("here-0"), SiteName("here")))
        trial = Restarted(runner, log, log.next(PilotStarted), directory)
        found: dict[str, object] = {}
        for width in WIDTHS:
            found[f"resize_to_{width}"] = summary(trial.resizes(width, repeats))
        found["same_width"] = summary(trial.crossings(2, repeats))
        return found
    finally:
        runner.close()


class Restarted:
    """One trial that is resized again and again."""

    def __init__(self, runner, log, pilot, directory: Path) -> None:
        self.runner, self.log, self.pilot, self.directory = runner, log, pilot, directory
        self.attempt, self.epoch, self.checkpoint = 0, 0, None

    def resizes(self, width: int, repeats: int) -> list[float]:
        """Go to and fro between half the width and the width; return the times of the way there."""
        from parsl_rasda.orchestration.events import EndJob, EpochReported, JobEnded

        times, reported_at = [], 0.0
        for count in range(2 * repeats + 1):
            job = self.start(width if count % 2 else width // 2)
            report = self.log.next(EpochReported, job)
            if count % 2:
                times.append(self.first_step(job, report.epoch - 1) - reported_at)
            reported_at, self.epoch, self.checkpoint = report.at, report.epoch, report.checkpoint.path
            self.runner.end_job(EndJob(job, "resized"))
            if self.log.next(JobEnded, job).outcome != "reached":
                raise RuntimeError(f"the job did not leave as ordered: {self.log.of(job)}")
            if count % 2 == 0:
                continue
        return times

    def crossings(self, width: int, repeats: int) -> list[float]:
        """Cross rungs in the same ranks."""
        from parsl_rasda.orchestration.events import ContinueJob, EndJob, EpochReported, JobEnded

        times, job = [], self.start(width)
        report = self.log.next(EpochReported, job)
        for _ in range(repeats):
            self.runner.continue_job(ContinueJob(job, until=report.epoch + 1, replicas=max(WIDTHS)))
            later = self.log.next(EpochReported)
            while later.job != job or later.epoch == report.epoch:
                later = self.log.next(EpochReported)
            times.append(self.first_step(job, report.epoch) - report.at)
            report = later
        self.runner.end_job(EndJob(job, "done"))
        self.log.next(JobEnded, job)
        return times

    def start(self, width: int):
        from parsl_rasda.protocol import JobSpec, Training
        from parsl_rasda.types import NodeSlots, Placement, TrialId

        self.attempt += 1
        node = self.pilot.nodes[0]
        placement = Placement(self.pilot.site, self.pilot.pilot, (NodeSlots(node.node, node.gpus[:width]),))
        order = JobSpec(
            study="restarts",
            trial=TrialId("t0"),
            attempt=self.attempt,
            config={},
            directory=str(self.directory / f"attempt-{self.attempt}"),
            seed=1,
            metric="loss",
            mode="min",
            epoch=self.epoch,
            until=self.epoch + 1,
            max_epochs=10_000,
            schedule=((0, max(WIDTHS)),),
            world_size=width,
            python="benchmarks.restarts:train",
            training=Training(batch_size=8),
            resume_from=self.checkpoint,
            slots=placement.slots,
            interactive=True,
        )
        self.runner.start_job(order, placement)
        return order.job

    def first_step(self, job, epoch: int) -> float:
        return float(
            (self.directory / f"attempt-{job.attempt}" / "scratch" / f"first-{epoch}").read_text(
                encoding="utf-8"
            )
        )


def summary(times: list[float]) -> dict[str, object]:
    return {
        "median_s": round(statistics.median(times), 4),
        "longest_s": round(max(times), 4),
        "times_s": [round(t, 4) for t in times],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    main()
