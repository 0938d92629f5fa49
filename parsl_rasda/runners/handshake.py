"""What a Globus Compute site says of itself, and whether it can work with this controller."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from parsl_rasda.runners.allocations import Allocation
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.vocabulary import NodeName, NodeSlots


def refusal_of(site: GlobusSiteSpec, found: Mapping[str, Any]) -> str | None:
    """Return why a site cannot be used, in words, or None.

    Args:
        site: What was declared.
        found: What `globus_site.describe` saw there.
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
    return None


def warnings_of(site: GlobusSiteSpec, found: Mapping[str, Any]) -> list[str]:
    """Return what differs on a site without breaking anything, in words."""
    warnings = []
    for package in ("torch", "parsl"):
        ours, theirs = version(package), found["versions"][package]
        if theirs is None:
            warnings.append(f"site {site.name} has no {package}: trainings that need it will fail there")
        elif _minor(ours) != _minor(theirs):
            warnings.append(f"site {site.name} has {package} {theirs}, the controller {ours}")
    declared, counted = site.gpus_per_node, site.accelerator not in {"cpu", "none"}
    if counted and isinstance(declared, int) and found["gpus"] < declared:
        where = found["nodes"][0]
        warnings.append(f"site {site.name}: {where} has {found['gpus']} GPUs, the site file says {declared}")
    return warnings


def allocation_of(site: GlobusSiteSpec, found: Mapping[str, Any]) -> Allocation:
    """Return the pilot that a site which is not refused offers."""
    gpus = found["gpus"] if site.gpus_per_node == "auto" else site.gpus_per_node
    nodes = tuple(NodeSlots(NodeName(name), tuple(range(gpus))) for name in found["nodes"])
    return Allocation(nodes, found["deadline"], site.python or found["executable"], found["rank_client"])


def _minor(text: str) -> str:
    return ".".join(text.partition("+")[0].split(".")[:2])
