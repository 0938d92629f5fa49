"""Tries a site out: a small pilot, and real jobs on one GPU, one node and two, through the real path.

What a job needs (launcher, masks, control channel, shared folder, fork server, collectives) is
thereby used as a study would use it; `runtime.site_probe` is what the jobs run.
"""

from __future__ import annotations

import logging
import queue
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from parsl_rasda.agent import node_probe
from parsl_rasda.backends.allocation import COUNTED
from parsl_rasda.backends.globus.backend import GlobusBackend
from parsl_rasda.backends.globus.client import EndpointClient
from parsl_rasda.backends.parsl.backend import ParslBackend
from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.orchestration.events import (
    EpochReported,
    Event,
    JobEnded,
    PilotEnded,
    PilotStarted,
    RequestPilot,
)
from parsl_rasda.plugins import kind_of
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study import ParslSiteSpec, SiteSpec
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import NodeSlots, Outcome, PilotId, Placement, SiteName, TrialId
from parsl_rasda.workflow.site_pool import check_folder

_WALLTIME = "00:20:00"
_PILOT_S = 3600.0  # in a queue
_JOB_S = 300.0
_STAGE_S = 120.0
_SKEW_S = 2.0  # above it, deadlines and leases are kept badly
_SEEN_S = 0.1

logger = logging.getLogger(__name__)


class Verdict(StrEnum):
    """How a finding is to be taken."""

    GOOD = "ok"
    DOUBTFUL = "check"  # it works, but something should be looked at
    BAD = "change"  # a study would fail here
    NONE = "-"  # not applicable


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    what: str
    found: str
    verdict: Verdict
    advice: str = ""


@dataclass(frozen=True, slots=True)
class _Job:
    """What came of one job.

    Attributes:
        ranks: What each rank has seen, as far as this machine can read it.
    """

    ended: JobEnded
    gb_s: float
    ranks: list[dict[str, Any]]
    seconds: float


class Doctor:
    """One examination of one site."""

    def __init__(
        self, site: SiteSpec, *, connect: Callable[[GlobusSiteSpec, UUID], EndpointClient] = EndpointClient
    ) -> None:
        """Prepare; nothing is started.

        Args:
            site: Whose.
            connect: Opens the way to an endpoint.

        Raises:
            RunDirectoryError: If Parsl cannot work in `work_dir`, or without one in the current folder.
        """
        self.site = _small(site)
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        base = Path.cwd()
        if isinstance(site, ParslSiteSpec):  # that of an endpoint lies elsewhere
            base = Path(site.work_dir) if site.work_dir else base
            check_folder(base)
        base.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="rasda-doctor-", dir=base))
        self.runner: ParslBackend | GlobusBackend
        if isinstance(self.site, ParslSiteSpec):
            self.runner = ParslBackend(self.site, self.folder / "runner")
        else:
            self.runner = GlobusBackend(self.site, self.folder / "runner", study="doctor", connect=connect)

    def examine(self, say: Callable[[str], None]) -> Iterator[Finding]:
        """Yield findings as they are made; the pilot is given back at the end, or when nobody listens.

        Args:
            say: Told what is being waited for.
        """
        self.runner.open(self.events.put)
        is_well = True
        try:
            for finding in self._findings(say):
                is_well &= finding.verdict is not Verdict.BAD
                yield finding
        except BaseException:
            is_well = False
            raise
        finally:
            self.runner.close()
            if is_well:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                say(f"logs are in {self._where}")

    @property
    def _where(self) -> str:
        """The folder of the jobs."""
        return f"{self.runner.folder}, there" if isinstance(self.runner, GlobusBackend) else str(self.folder)

    def _findings(self, say: Callable[[str], None]) -> Iterator[Finding]:
        say(f"asking {self.site.name} for a pilot of {self.site.nodes_per_pilot} node(s)")
        began = time.monotonic()
        self.runner.request_pilot(RequestPilot(PilotId("doctor-0"), SiteName(self.site.name)))
        pilot = self._await(lambda e: isinstance(e, PilotStarted | PilotEnded), _PILOT_S)
        if not isinstance(pilot, PilotStarted):
            late = (
                f"it did not come within {_PILOT_S / 60:g} min; a queue for tests (`doctor:`) may be shorter"
            )
            cause = pilot.cause if isinstance(pilot, PilotEnded) else late
            raise SiteUnavailableError(self.site.name, cause)
        nodes, wanted = len(pilot.nodes), self.site.nodes_per_pilot
        yield Finding(
            "pilot",
            f"{nodes} node{'s' * (nodes > 1)} after {time.monotonic() - began:.0f} s",
            Verdict.GOOD if nodes >= wanted else Verdict.DOUBTFUL,
            "" if nodes >= wanted else f"{wanted} were asked for; look at the provider's limits",
        )
        yield from self._environment()
        yield from self._jobs(pilot, say)

    def _environment(self) -> Iterator[Finding]:
        """What Parsl's worker on the first node sees."""
        began = time.time()
        clock = self.runner.submit_stage(time.time).result(_STAGE_S)
        ended = time.time()
        found = self.runner.submit_stage(node_probe.describe_allocation, self.site.accelerator).result(
            _STAGE_S
        )
        skew_s = max(0.0, abs(clock - (began + ended) / 2) - (ended - began) / 2)
        yield Finding(
            "clock",
            f"{skew_s:.1f} s apart" if skew_s > _SEEN_S else "the same as here",
            Verdict.GOOD if skew_s < _SKEW_S else Verdict.DOUBTFUL,
            "" if skew_s < _SKEW_S else f"set checkpoint_margin {skew_s:.0f} s longer, or run ntpd",
        )
        here = node_probe.describe_allocation("none")
        same = found["python"] == here["python"]
        yield Finding(
            "python",
            f"{found['python']} there, {here['python']} here",
            Verdict.GOOD if same else Verdict.BAD,
            "" if same else "tasks are pickled: use the same minor version on both sides (worker_init)",
        )
        versions = ", ".join(f"{name} {text or 'missing'}" for name, text in found["versions"].items())
        has_torch = found["versions"]["torch"] is not None or self.site.accelerator == "none"
        advice = "" if has_torch else "install torch in the environment that worker_init activates"
        yield Finding("packages", versions, Verdict.GOOD if has_torch else Verdict.BAD, advice)
        yield self._gpus(found["gpus"])

    def _gpus(self, found: int) -> Finding:
        declared = self.site.gpus_per_node
        if self.site.accelerator not in DEVICE_MASKS:
            return Finding("slots per node", f"{declared} declared", Verdict.GOOD)
        if not found:
            advice = "none were seen: is the partition one with GPUs, does the provider ask for them?"
            return Finding("GPUs per node", f"none found, {declared} declared", Verdict.DOUBTFUL, advice)
        fits = declared in {"auto", found} or (self.site.accelerator not in COUNTED and declared % found == 0)
        advice = "" if fits else f"set gpus_per_node: {found}, or ask the provider for all of them"
        return Finding(
            "GPUs per node",
            f"{found} found, {declared} declared",
            Verdict.GOOD if fits else Verdict.DOUBTFUL,
            advice,
        )

    # ------------------------------------------------------------------------------------- jobs

    def _jobs(self, pilot: PilotStarted, say: Callable[[str], None]) -> Iterator[Finding]:
        first = pilot.nodes[0]
        shapes: dict[str, tuple[NodeSlots, ...]] = {
            "1 GPU": (NodeSlots(first.node, first.gpus[:1]),),
            "1 node": (first,),
        }
        if len(pilot.nodes) > 1:
            shapes["2 nodes"] = pilot.nodes[:2]
        ranks: list[dict[str, Any]] = []
        for number, (shape, nodes) in enumerate(shapes.items()):
            say(f"a job on {shape}")
            job = self._run(f"doctor-{number}", Placement(pilot.site, pilot.pilot, nodes), pilot)
            yield self._launch(shape, job, sum(len(n.gpus) for n in nodes))
            if job.ended.outcome is not Outcome.REACHED:
                return  # wider ones would fail in the same way
            ranks += job.ranks
        if "2 nodes" not in shapes:
            yield Finding("all-reduce, 2 nodes", "the pilot has one node", Verdict.NONE)
        yield from self._seen(ranks)

    def _run(self, name: str, placement: Placement, pilot: PilotStarted) -> _Job:
        directory = self.folder / "trials" / name / "attempt-1"
        order = JobSpec(
            study="doctor",
            trial=TrialId(name),
            attempt=1,
            config={},
            directory=str(directory),
            seed=0,
            metric="gb_s",
            mode="max",
            epoch=0,
            until=1,
            max_epochs=1,
            schedule=((0, placement.width),),
            world_size=placement.width,
            python="parsl_rasda.runtime.site_probe:examine",
            inputs={"torch": self.site.accelerator != "none"},
            slots=placement.slots,
            accelerator=self.site.accelerator,
            interactive=False,
            deadline=pilot.deadline,
        )
        began, gb_s = time.monotonic(), 0.0
        directory.mkdir(parents=True, exist_ok=True)
        self.runner.start_job(order, placement)
        while True:
            event = self._await(
                lambda e: isinstance(e, EpochReported | JobEnded) and e.job == order.job, _JOB_S
            )
            if isinstance(event, EpochReported):
                gb_s = float(event.metrics.get("gb_s", 0.0))
                continue
            if not isinstance(event, JobEnded):
                cause = f"it did not end within {_JOB_S:g} s"
                event = JobEnded(time.time(), order.job, Outcome.LOST, cause)
            seconds = time.monotonic() - began
            return _Job(event, gb_s, self._ranks_of(order), seconds)

    def _ranks_of(self, order: JobSpec) -> list[dict[str, Any]]:
        """Return what the ranks of a job have left in its folder, here or behind the endpoint."""
        if not isinstance(self.runner, GlobusBackend):
            return node_probe.rank_files(order.directory)
        folder = self.runner.attempt(order.job)
        found: list[dict[str, Any]] = self.runner.submit_stage(node_probe.rank_files, folder).result(_STAGE_S)
        return found

    def _launch(self, shape: str, job: _Job, width: int) -> Finding:
        name = f"all-reduce, {shape}"
        if job.ended.outcome is not Outcome.REACHED:
            said = f"{job.ended.outcome}: {job.ended.cause}"
            launcher = kind_of(self.site.mpi_launcher)
            return Finding(name, said, Verdict.BAD, f"look at mpi_launcher ({launcher}) and its log")
        took = f"{width} rank{'s' * (width > 1)} in {job.seconds:.1f} s"
        speed = f", {job.gb_s:.2f} GB/s" if job.gb_s else ""
        expected = width if self.site.accelerator != "none" else 1
        if len(job.ranks) < expected:
            advice = "set work_dir to a folder that all nodes and this machine see"
            return Finding(name, f"{took}{speed}; files of {len(job.ranks)} ranks came", Verdict.BAD, advice)
        return Finding(name, took + speed, Verdict.GOOD)

    def _seen(self, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
        yield Finding("shared folder", self._where, Verdict.GOOD)
        if self.site.accelerator == "none":
            yield Finding("torch", "not used: slots are only logical", Verdict.NONE)
            return
        kinds = {(r["device"], r["torch"], r["cuda"], r["nccl"]) for r in ranks}
        device, torch, cuda, nccl = sorted(kinds, key=str)[0]
        words = [
            f"torch {torch}",
            str(device),
            *([f"CUDA/ROCm {cuda}"] if cuda else []),
            *([f"NCCL {nccl}"] if nccl else []),
        ]
        alike = len(kinds) == 1
        yield Finding(
            "torch",
            ", ".join(words),
            Verdict.GOOD if alike else Verdict.DOUBTFUL,
            "" if alike else "nodes differ",
        )
        yield from _alike(ranks, self.site.accelerator)
        forked = sum(r["forked"] for r in ranks)
        if not self.site.warm_start:
            yield Finding("fork server", "switched off (warm_start: false)", Verdict.NONE)
        elif forked:
            yield Finding("fork server", f"{forked} of {len(ranks)} ranks were forked", Verdict.GOOD)
        else:
            advice = "ranks start in seconds instead of tenths; see log.txt, or set warm_start: false"
            yield Finding("fork server", "no rank was forked", Verdict.DOUBTFUL, advice)

    def _await(self, wanted: Callable[[Event], bool], timeout_s: float) -> Event | None:
        """Return the next event of interest; None after the time [s]."""
        give_up = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, give_up - time.monotonic())
            try:
                event = self.events.get(timeout=left_s)
            except queue.Empty:
                return None
            if wanted(event):
                return event


def _alike(ranks: list[dict[str, Any]], accelerator: str) -> Iterator[Finding]:
    """Yield whether the clocks, interpreters and masks of a site's ranks are what they must be.

    Ranks of a job look at their clocks when they have just met.
    """
    apart_s = max(_span([r["clock"] for r in ranks if r["job"] == job]) for job in {r["job"] for r in ranks})
    in_step = apart_s < _SKEW_S
    yield Finding(
        "clocks of the nodes",
        f"{apart_s:.1f} s apart",
        Verdict.GOOD if in_step else Verdict.DOUBTFUL,
        ""
        if in_step
        else "deadlines are kept that much worse: tell the centre, or lengthen checkpoint_margin",
    )
    pythons = sorted({r["python"] for r in ranks})
    if len(pythons) > 1:
        advice = "set `python` in the site file, or look at what each node's shell puts on its PATH"
        yield Finding("python of the ranks", ", ".join(pythons), Verdict.BAD, advice)
    if accelerator in DEVICE_MASKS:
        yield _masks(ranks, DEVICE_MASKS[accelerator])


def _span(clocks: list[float]) -> float:
    return max(clocks) - min(clocks)


def _masks(ranks: list[dict[str, Any]], variable: str) -> Finding:
    """Return whether each rank saw as many GPUs as ranks of its job were on its node."""
    there = Counter((r["job"], r["node"]) for r in ranks)
    wrong = [r for r in ranks if len(r["mask"].get(variable, "").split(",")) != there[r["job"], r["node"]]]
    if not wrong:
        return Finding("masks", f"{variable} is right on {len(ranks)} ranks", Verdict.GOOD)
    worst = wrong[0]
    node, mask = worst["node"], worst["mask"].get(variable)
    found = f"{node} has {variable}={mask!r} for {there[worst['job'], node]}"
    advice = "something sets the mask after us: a wrapper, a module, launcher_options (--gpu-bind)"
    return Finding("masks", f"{found} ranks", Verdict.BAD, advice)


def _small(site: SiteSpec) -> SiteSpec:
    """Return the site with a pilot of at most two nodes and a short walltime: it starts sooner."""
    nodes = min(2, site.nodes_per_pilot)
    changes: dict[str, Any] = {"pilots": 1, "nodes": nodes}
    if isinstance(site, ParslSiteSpec):
        provider = site.provider.model_dump()
        if "nodes_per_block" in provider:
            provider["nodes_per_block"] = nodes
        if "walltime" in provider:
            provider["walltime"] = _WALLTIME
        changes["provider"] = provider | dict(site.doctor)
    data = site.model_dump(by_alias=True)
    return type(site).model_validate({**data, **changes})
