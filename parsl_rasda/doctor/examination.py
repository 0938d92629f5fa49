"""Tries a site out: a small pilot, and real jobs on one GPU, one node and two, through the real path.

What a job needs (launcher, masks, control channel, shared folder, fork server, collectives) is
thereby used as a study would use it.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parsl_rasda.agent import node_probe
from parsl_rasda.backends.allocation import probe_command
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.doctor import probes
from parsl_rasda.doctor.container import container_findings, where_ranks_run
from parsl_rasda.doctor.findings import (
    Finding,
    ProbeResult,
    Rating,
    clock_finding,
    environment_findings,
    launch_finding,
    pilot_finding,
    rank_findings,
)
from parsl_rasda.doctor.surroundings import network_finding, storage_findings, worker_init_finding
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.orchestration.backend import Backend, BackendContext, BackendFailed, StageTask, event_of
from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    JobEnded,
    PilotEnded,
    PilotStarted,
    RequestPilot,
)
from parsl_rasda.orchestration.run_directory import RunDirectory, check_folder
from parsl_rasda.private_files import make_private
from parsl_rasda.protocol import JobSpec, Training
from parsl_rasda.study import SiteSpec
from parsl_rasda.types import JobId, NodeSlots, Outcome, PilotId, Placement, SiteName, TrialId
from parsl_rasda.workflow.tasks import call_python

_NODES, _WALLTIME = 2, "00:20:00"
_PILOT_S = 3600.0  # in a queue
_JOB_S = 300.0
_STAGE_S = 120.0
# How NCCL and RCCL say what they go over: each rank reads its own file, and removes it.
_NCCL_WATCHED = {
    "NCCL_DEBUG": "INFO",
    "NCCL_DEBUG_SUBSYS": "INIT,NET",
    "NCCL_DEBUG_FILE": "/tmp/parsl-rasda-nccl-%p",  # noqa: S108 - NCCL fills in the process; on the node's own disk
}
_SLOTS = {"cpu": "core", "none": "slot"}  # a slot is a GPU elsewhere
_LATE = f"it did not come within {_PILOT_S / 60:g} min; a queue for tests (`doctor:`) may be shorter"


class Doctor:
    """One examination of one site."""

    def __init__(
        self, site: SiteSpec, *, build: Callable[[SiteSpec, BackendContext], Backend] = build_backend
    ) -> None:
        """Prepare; nothing is started.

        Args:
            site: Which one.
            build: Returns its backend.

        Raises:
            RunDirectoryError: If nothing can be run in `work_dir`, or without one in the current folder.
        """
        self.site = site.for_trial(_NODES, _WALLTIME)
        if site.accelerator in DEVICE_MASKS and site.accelerator != "xpu":
            environment = {**_NCCL_WATCHED, **self.site.environment}
            self.site = self.site.model_copy(update={"environment": environment})
        self.events: queue.SimpleQueue[Event | BackendFailed] = queue.SimpleQueue()
        base = Path.cwd()
        if site.capabilities.sees_run_directory:  # else its work_dir lies elsewhere
            base = Path(site.work_dir) if site.work_dir else base
            check_folder(base)
        make_private(base)
        self.folder = Path(tempfile.mkdtemp(prefix="rasda-doctor-", dir=base))
        self.where = str(self.folder)  # the files of its jobs, for the user
        context = BackendContext(self.folder / "runner", self.folder, study="doctor")
        self.backend = build(self.site, context)

    def examine(self, say: Callable[[str], None]) -> Iterator[Finding]:
        """Yield findings as they are made; the pilot is given back at the end, or when nobody listens.

        Args:
            say: Told what is being waited for.
        """
        self.backend.open(self.events.put)
        is_well = True
        try:
            for finding in self._findings(say):
                is_well &= finding.verdict is not Rating.BAD
                yield finding
        except BaseException:
            is_well = False
            raise
        finally:
            self.backend.close()
            if is_well:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                say(f"logs are in {self.where}")

    def _findings(self, say: Callable[[str], None]) -> Iterator[Finding]:
        say(f"asking {self.site.name} for a pilot of {self.site.nodes_per_pilot} node(s)")
        began = time.monotonic()
        self.backend.request_pilot(RequestPilot(PilotId("doctor-0"), SiteName(self.site.name)))
        pilot = self._await(lambda e: isinstance(e, PilotStarted | PilotEnded), _PILOT_S)
        if not isinstance(pilot, PilotStarted):
            cause = pilot.cause if isinstance(pilot, PilotEnded) else _LATE
            raise SiteUnavailableError(self.site.name, cause)
        yield pilot_finding(len(pilot.nodes), self.site, time.monotonic() - began)
        yield from self._environment()
        yield from self._jobs(pilot, say)

    def _environment(self) -> Iterator[Finding]:
        began = time.time()
        clock = self._call("clock")
        yield clock_finding(clock, began, time.time())
        inside, here = list(probe_command(self.site)), node_probe.describe_allocation("none")
        there = self._call("describe_allocation", accelerator=self.site.accelerator, container=inside)
        yield from environment_findings(self.site, where_ranks_run(there), here)
        yield from container_findings(self.site, there, here)
        if self.backend.capabilities.sees_run_directory:
            yield worker_init_finding(self._said_by_script())
        where = self.where if self.backend.capabilities.sees_run_directory else self.site.work_dir or "."
        yield from storage_findings(self._call("storage", folder=where))

    def _said_by_script(self) -> str:
        """Return what the pilot's job script has written to stderr."""
        return "\n".join(
            path.read_text(encoding="utf-8", errors="replace")
            for ending in ("stderr", "err")
            for path in sorted((self.folder / "runner").rglob(f"submit_scripts/*.{ending}"))
        )

    def _call(self, probe: str, **arguments: str | list[str]) -> Any:
        """Return what a function of `probes` returns on the first node."""
        task = StageTask(
            SiteName(self.site.name), "doctor", probe, call_python, f"{probes.__name__}:{probe}", arguments
        )
        return self.backend.submit_stage(task).result(_STAGE_S)["result"]

    # ------------------------------------------------------------------------------------- jobs

    def _jobs(self, pilot: PilotStarted, say: Callable[[str], None]) -> Iterator[Finding]:
        first = pilot.nodes[0]
        shapes: dict[str, tuple[NodeSlots, ...]] = {
            f"1 {_SLOTS.get(self.site.accelerator, 'GPU')}": (NodeSlots(first.node, first.gpus[:1]),),
            "1 node": (first,),
        }
        if len(pilot.nodes) > 1:
            shapes["2 nodes"] = pilot.nodes[:2]
        results: dict[str, ProbeResult] = {}
        for number, (shape, nodes) in enumerate(shapes.items()):
            say(f"a job on {shape}")
            placement = Placement(pilot.site, pilot.pilot, nodes)
            job = results[shape] = self._run(TrialId(f"doctor-{number}"), placement, pilot)
            yield launch_finding(shape, job, placement.world_size, self.site)
            if job.ended.outcome is not Outcome.REACHED:
                return  # wider ones would fail in the same way
        if "2 nodes" not in shapes:
            yield Finding("all-reduce, 2 nodes", "the pilot has one node", Rating.NONE)
        elif self.site.accelerator != "none":
            yield network_finding(results["1 node"], results["2 nodes"], self.site)
        ranks = [rank for job in results.values() for rank in job.ranks]
        yield from rank_findings(ranks, self.site, self.where)

    def _run(self, trial: TrialId, placement: Placement, pilot: PilotStarted) -> ProbeResult:
        directory = RunDirectory(self.folder).attempt(JobId(trial, 1))
        order = JobSpec(
            study="doctor",
            trial=trial,
            attempt=1,
            config={},
            directory=str(directory),
            seed=0,
            metric="gb_s",
            mode="max",
            epoch=0,
            until=1,
            max_epochs=1,
            schedule=((0, placement.world_size),),
            training=Training(batch_size=1),
            world_size=placement.world_size,
            python="parsl_rasda.runtime.site_probe:examine",
            inputs={"torch": self.site.accelerator != "none"},
            slots=placement.slots,
            accelerator=self.site.accelerator,
            interactive=False,
            deadline=pilot.deadline,
        )
        began, gb_s, exchange_s = time.monotonic(), 0.0, 0.0
        make_private(directory)
        self.backend.start_job(order, placement)
        while True:
            event = self._await(
                lambda e: isinstance(e, EpochReported | JobEnded) and e.job == order.job, _JOB_S
            )
            if isinstance(event, EpochReported):
                gb_s = float(event.metrics.get("gb_s", 0.0))
                exchange_s = float(event.metrics.get("exchange_s", 0.0))
                continue
            if not isinstance(event, JobEnded):
                cause = f"it did not end within {_JOB_S:g} s"
                event = JobEnded(time.time(), order.job, Outcome.LOST, cause)
            seconds = time.monotonic() - began
            return ProbeResult(event, gb_s, exchange_s, self._ranks_of(order), seconds)

    def _ranks_of(self, order: JobSpec) -> list[dict[str, Any]]:
        """Return what the ranks of a job have left in its folder, read here if this machine sees it."""
        attempt = self.backend.directory_of(order)
        if self.backend.capabilities.sees_run_directory:
            return probes.rank_files(attempt)
        self.where = f"{Path(attempt).parents[2]}, there"
        found: list[dict[str, Any]] = self._call("rank_files", attempt=attempt)
        return found

    def _await(self, wanted: Callable[[Event], bool], timeout_s: float) -> Event | None:
        """Return the next event of interest; None after the time [s]."""
        give_up = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, give_up - time.monotonic())
            try:
                event = event_of(self.events.get(timeout=left_s))
            except queue.Empty:
                return None
            if wanted(event):
                return event
