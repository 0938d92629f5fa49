"""What a Globus Compute site reports of itself, and whether it can work with this controller."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from parsl_rasda.agent.endpoint_tasks import TaskContext
from parsl_rasda.backends.allocation import (
    PilotAllocation,
    gpus_of,
    hands_out_gpus,
    inside_of,
    probe_command,
)
from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.study.pilot_counts import walltime_s
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import NodeName, NodeSlots

_FOR_QUESTIONS = 2  # workers that the endpoint's template adds to `trials`


def arguments_of(site: GlobusSiteSpec, sender: TaskContext) -> dict[str, Any]:
    """Return what a handshake asks with (`endpoint_tasks.describe`)."""
    inside = probe_command(site)
    container = {"container": inside} if inside else {}
    return {"accelerator": site.accelerator, "sender": asdict(sender), **container}


def refusal_of(site: GlobusSiteSpec, found: Mapping[str, Any]) -> str | None:
    """Return why a site cannot be used, for people, or None.

    Args:
        site: What was declared.
        found: What `endpoint_tasks.describe` saw there.
    """
    here, there = platform.python_version(), found["python"]
    if _minor(here) != _minor(there):
        return f"site {site.name} runs Python {there}, the controller {here}; use the same minor version"
    ours, theirs = version("parsl_rasda"), found["versions"]["parsl_rasda"]
    if ours != theirs:
        return f"site {site.name} has parsl_rasda {theirs}, the controller {ours}; install the same"
    if len(found["nodes"]) < site.nodes:
        return (
            f"site {site.name}: the endpoint's pilot has {len(found['nodes'])} of {site.nodes} nodes; set "
            "`nodes` of the site file to nodes_per_block of the endpoint's template"
        )
    if site.gpus_per_node == "auto" and not found["gpus"]:
        return f"site {site.name}: no {site.accelerator} device was found on {found['nodes'][0]}"
    inside = inside_of(site, found)
    return f"site {site.name}: {inside}" if isinstance(inside, str) else None


def taken_message(site: GlobusSiteSpec, found: Mapping[str, Any]) -> str:
    """Return a message that another study has the pilot, or nothing.

    Args:
        site: What was declared.
        found: What `endpoint_tasks.describe` saw there.
    """
    if not found["taken"]:
        return ""
    words = f"site {site.name}: {found['taken']}; wait for its end"
    if site.user_endpoint_config.get("batch_system") == "local":
        return words
    return f"{words}, or give this one a pilot of its own with `study: NAME` in user_endpoint_config"


def warnings_of(site: GlobusSiteSpec, found: Mapping[str, Any], *, narrowest: int = 1) -> list[str]:
    """Return what differs on a site without breaking anything, for people.

    Args:
        site: What was declared.
        found: What `endpoint_tasks.describe` saw there.
        narrowest: Slots of the narrowest job.
    """
    warnings = []
    for package in ("torch", "parsl"):
        ours, theirs = version(package), found["versions"][package]
        if theirs is None:
            warnings.append(f"site {site.name} has no {package}: trainings that need it will fail there")
        elif _minor(ours) != _minor(theirs):
            warnings.append(f"site {site.name} has {package} {theirs}, the controller {ours}")
    declared, counted = site.gpus_per_node, site.accelerator in DEVICE_MASKS
    if counted and isinstance(declared, int) and found["gpus"] < declared:
        where = found["nodes"][0]
        warnings.append(f"site {site.name}: {where} has {found['gpus']} GPUs, the site file says {declared}")
    jobs, slots = jobs_at_a_time(found), _gpus(site, found) * len(found["nodes"])
    if jobs is not None and jobs < slots // narrowest:
        warnings.append(
            f"site {site.name}: its pilot has {found['workers']} workers, enough for {jobs} trials at a "
            f"time, and {slots} slots for {slots // narrowest}; raise `trials` in user_endpoint_config"
        )
    return warnings


def allocation_of(site: GlobusSiteSpec, found: Mapping[str, Any], *, now: float) -> PilotAllocation:
    """Return the pilot that a site which is not refused offers.

    Args:
        site: What was declared.
        found: What `endpoint_tasks.describe` saw there.
        now: Unix time [s].
    """
    usual = _gpus(site, found)
    counts = {name: gpus_of(site, found, name, usual) for name in found["nodes"]}
    nodes = tuple(NodeSlots(NodeName(name), tuple(range(k))) for name, k in counts.items() if k)
    walltime, deadline = site.user_endpoint_config.get("walltime"), found["deadline"]
    if deadline is None and isinstance(walltime, str):  # PBS does not tell; a workstation has none
        deadline = now - found["age_s"] + walltime_s(walltime)
    inside = found["inside"] if site.container else found
    return PilotAllocation(
        nodes,
        deadline,
        site.python or inside["executable"],
        inside["rank_client"],
        is_one_machine=len(nodes) == 1,
        agent=(found["executable"], found["rank_client"]) if site.container else None,
        has_gres=hands_out_gpus(found),
    )


def jobs_at_a_time(found: Mapping[str, Any]) -> int | None:
    """Return how many jobs find a worker, while two answer questions; None if that is not known."""
    return max(1, found["workers"] - _FOR_QUESTIONS) if found["workers"] else None


def _gpus(site: GlobusSiteSpec, found: Mapping[str, Any]) -> int:
    """Return the slots of a node: as declared, unless its devices were counted and are fewer."""
    declared, there = site.gpus_per_node, int(found["gpus"])
    if declared == "auto" or (site.accelerator in DEVICE_MASKS and 0 < there < declared):
        return there
    return declared


def _minor(text: str) -> str:
    return ".".join(text.partition("+")[0].split(".")[:2])
