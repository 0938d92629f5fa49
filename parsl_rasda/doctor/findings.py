"""What `doctor` makes of what it has seen: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from parsl_rasda.backends.allocation import COUNTED
from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.doctor.advice import advice_for, torch_advice
from parsl_rasda.orchestration.events import JobEnded
from parsl_rasda.study import SiteBase
from parsl_rasda.types import Outcome

_SKEW_S = 2.0  # above it, deadlines and leases are kept badly
_SEEN_S = 0.1


class Rating(StrEnum):
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
    verdict: Rating
    advice: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of one job.

    Attributes:
        gb_s: Bus bandwidth of its all-reduce [GB/s].
        exchange_s: What a step took that only exchanged gradients, as training does [s]; 0 for one rank.
        ranks: What each rank has seen, as far as this machine can read it.
        seconds: From its start to its end [s].
    """

    ended: JobEnded
    gb_s: float
    exchange_s: float
    ranks: Sequence[Mapping[str, Any]]
    seconds: float


def good_if(is_good: bool, what: str, found: str, advice: str, *, otherwise: Rating) -> Finding:
    """Return a finding that is good, or else comes with advice."""
    return Finding(what, found, Rating.GOOD) if is_good else Finding(what, found, otherwise, advice)


def pilot_finding(nodes: int, site: SiteBase, seconds: float) -> Finding:
    """Return whether a pilot has the nodes that were asked for; it came after so long [s]."""
    wanted = site.nodes_per_pilot
    return good_if(
        nodes >= wanted,
        "pilot",
        f"{nodes} node{'s' * (nodes > 1)} after {seconds:.0f} s",
        f"{wanted} were asked for; look at the provider's limits",
        otherwise=Rating.DOUBTFUL,
    )


def clock_finding(clock: float, began: float, ended: float) -> Finding:
    """Return how far a clock is from ours, which it was asked for between two times [Unix time, s]."""
    skew_s = max(0.0, abs(clock - (began + ended) / 2) - (ended - began) / 2)
    return good_if(
        skew_s < _SKEW_S,
        "clock",
        f"{skew_s:.1f} s apart" if skew_s > _SEEN_S else "the same as here",
        f"set checkpoint_margin {skew_s:.0f} s longer, or run ntpd",
        otherwise=Rating.DOUBTFUL,
    )


def environment_findings(
    site: SiteBase, there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[Finding]:
    """Yield what a worker on the first node sees, beside what this machine has (`describe_allocation`)."""
    yield good_if(
        there["python"] == here["python"],
        "python",
        f"{there['python']} there, {here['python']} here",
        "tasks are pickled: use the same minor version on both sides (worker_init)",
        otherwise=Rating.BAD,
    )
    advice = torch_advice(there["versions"]["torch"], site)
    yield good_if(
        not advice,
        "packages",
        ", ".join(f"{name} {text or 'missing'}" for name, text in there["versions"].items()),
        advice,
        otherwise=Rating.BAD,
    )
    yield _gpu_finding(site, there["gpus"])


def _gpu_finding(site: SiteBase, found: int) -> Finding:
    declared = site.gpus_per_node
    if site.accelerator not in DEVICE_MASKS:
        return Finding("slots per node", f"{declared} declared", Rating.GOOD)
    if not found:
        advice = "none were seen: is the partition one with GPUs, does the provider ask for them?"
        return Finding("GPUs per node", f"none found, {declared} declared", Rating.DOUBTFUL, advice)
    return good_if(
        declared in {"auto", found} or (site.accelerator not in COUNTED and declared % found == 0),
        "GPUs per node",
        f"{found} found, {declared} declared",
        f"set gpus_per_node: {found}, or ask the provider for all of them",
        otherwise=Rating.DOUBTFUL,
    )


def launch_finding(shape: str, job: ProbeResult, world_size: int, site: SiteBase) -> Finding:
    """Return whether a job on a shape of slots ran, how fast, and whether its files came."""
    name = f"all-reduce, {shape}"
    if job.ended.outcome is not Outcome.REACHED:
        found = f"{job.ended.outcome}: {job.ended.cause}"
        return Finding(name, found, Rating.BAD, advice_for(job.ended.cause, site))
    took = f"{world_size} rank{'s' * (world_size > 1)} in {job.seconds:.1f} s"
    speed = f", {job.gb_s:.2f} GB/s" if job.gb_s else ""
    if job.exchange_s and job.ranks:
        size = job.ranks[0]["exchanged_mb"]
        speed += f", {size:.0f} MB of gradients exchanged in {1000 * job.exchange_s:.0f} ms"
    expected = world_size if site.accelerator != "none" else 1
    if len(job.ranks) < expected:
        advice = "set work_dir to a folder that all nodes and this machine see"
        return Finding(name, f"{took}{speed}; files of {len(job.ranks)} ranks came", Rating.BAD, advice)
    return Finding(name, took + speed, Rating.GOOD)


def backend_findings(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield whether several ranks could add gradients, as the first one sees it."""
    for rank in ranks[:1]:
        if "backend" in rank:
            name = str(rank["backend"])
            yield good_if(
                bool(rank["has_backend"]),
                "collectives",
                name if rank["has_backend"] else f"torch {rank['torch']} was built without {name}",
                f"install a torch with {name}, or set gpus_per_node: 1, nodes: 1",
                otherwise=Rating.BAD,
            )


def rank_findings(ranks: Sequence[Mapping[str, Any]], site: SiteBase, folder: str) -> Iterator[Finding]:
    """Yield what the ranks of all jobs have seen, whose files came from a folder."""
    yield Finding("shared folder", folder, Rating.GOOD)
    if site.accelerator == "none":
        yield Finding("torch", "not used: slots are only logical", Rating.NONE)
        return
    kinds = {(r["device"], r["torch"], r["cuda"], r["nccl"]) for r in ranks}
    device, torch, cuda, nccl = sorted(kinds, key=str)[0]
    versions = {"CUDA/ROCm": cuda, "NCCL": nccl}
    parts = [f"torch {torch}", str(device), *(f"{name} {v}" for name, v in versions.items() if v)]
    words = ", ".join(parts)
    yield good_if(len(kinds) == 1, "torch", words, "nodes differ", otherwise=Rating.DOUBTFUL)
    yield from _consistency(ranks, site.accelerator)
    forked = sum(r["forked"] for r in ranks)
    if not site.warm_start:
        yield Finding("fork server", "switched off (warm_start: false)", Rating.NONE)
    elif forked:
        yield Finding("fork server", f"{forked} of {len(ranks)} ranks were forked", Rating.GOOD)
    else:
        advice = "ranks start in seconds instead of tenths; see log.txt, or set warm_start: false"
        yield Finding("fork server", "no rank was forked", Rating.DOUBTFUL, advice)


def _consistency(ranks: Sequence[Mapping[str, Any]], accelerator: str) -> Iterator[Finding]:
    """Yield whether the clocks, interpreters and masks of a site's ranks are what they must be.

    Ranks of a job look at their clocks when they have just met.
    """
    jobs = {r["job"] for r in ranks}
    apart_s = max(_span([r["clock"] for r in ranks if r["job"] == job]) for job in jobs)
    yield good_if(
        apart_s < _SKEW_S,
        "clocks of the nodes",
        f"{apart_s:.1f} s apart",
        "deadlines are kept that much worse: tell the centre, or lengthen checkpoint_margin",
        otherwise=Rating.DOUBTFUL,
    )
    pythons = sorted({r["python"] for r in ranks})
    if len(pythons) > 1:
        advice = "set `python` in the site file, or look at what each node's shell puts on its PATH"
        yield Finding("python of the ranks", ", ".join(pythons), Rating.BAD, advice)
    if accelerator in DEVICE_MASKS:
        yield _mask_finding(ranks, DEVICE_MASKS[accelerator])


def _span(clocks: Sequence[float]) -> float:
    return max(clocks) - min(clocks)


def _mask_finding(ranks: Sequence[Mapping[str, Any]], variable: str) -> Finding:
    """Return whether each rank saw as many GPUs as ranks of its job were on its node."""
    there = Counter((r["job"], r["node"]) for r in ranks)
    wrong = [r for r in ranks if len(r["mask"].get(variable, "").split(",")) != there[r["job"], r["node"]]]
    if not wrong:
        return Finding("masks", f"{variable} is right on {len(ranks)} ranks", Rating.GOOD)
    worst = wrong[0]
    node, mask = worst["node"], worst["mask"].get(variable)
    found = f"{node} has {variable}={mask!r} for {there[worst['job'], node]}"
    advice = "something sets the mask after us: a wrapper, a module, launcher_options (--gpu-bind)"
    return Finding("masks", f"{found} ranks", Rating.BAD, advice)
