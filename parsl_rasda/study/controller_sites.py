"""What a site is asked for the job of a controller (`submit`), and what it is to one inside a pilot."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from parsl_rasda.errors import InvalidSettingError, Loc
from parsl_rasda.study.document import AsWritten
from parsl_rasda.study.parsl_site import ParslSiteSpec

# What the job of a controller has in common with the pilots; the rest of a pilot's request is for its GPUs.
_COMMON = frozenset(
    {
        *("type", "account", "partition", "queue", "qos", "constraint", "clusters", "walltime"),
        *("worker_init", "cmd_timeout"),
    }
)
# One core, in the words of each batch system that `submit` knows.
_ONE_CORE: Mapping[str, Mapping[str, JsonValue]] = {
    "SlurmProvider": {"exclusive": False, "cores_per_node": 1},
    "PBSProProvider": {"cpus_per_node": 1},
}


def controller_site(site: ParslSiteSpec, *, inside: bool) -> ParslSiteSpec:
    """Return the site whose pilot is the job of a controller: one core, or a pilot of the study itself.

    Args:
        site: Of the study; its `controller` has the arguments that differ for a core.
        inside: The controller runs on the first node of a pilot, which is asked for as ever.

    Raises:
        InvalidSettingError: If its provider has no batch system that we can hand a controller to.
    """
    kind = site.provider.type
    if kind not in _ONE_CORE:
        allowed = f"{', '.join(_ONE_CORE)}; elsewhere, `run` in tmux or screen"
        raise InvalidSettingError(f"--site {site.name}: provider.type", kind, allowed)
    differs = {} if inside else site.controller
    asked = {"type": kind, **site.provider.options}
    if not inside:
        asked = {**{key: value for key, value in asked.items() if key in _COMMON}, **_ONE_CORE[kind]}
    nodes = site.nodes_per_pilot if inside else 1
    asked = {**asked, "nodes_per_block": nodes, **differs}
    document = {**site.model_dump(by_alias=True), "pilots": 1, "nodes": None, "walltimes": ()}
    document["provider"] = asked
    written = _written(site, set(asked), differs)
    return ParslSiteSpec.model_validate(document).as_written(written)


def site_inside(site: ParslSiteSpec) -> ParslSiteSpec:
    """Return the site as a controller on the first node of a pilot has it: that allocation, all of it."""
    document = {**site.model_dump(by_alias=True), "pilots": 1, "nodes": "auto", "address": None}
    document |= {"provider": {"type": "LocalProvider"}, "doctor": {}, "controller": {}, "walltimes": ()}
    kept = {
        loc: text
        for loc, text in site.written.items()
        if loc[0] not in {"provider", "doctor", "controller", "nodes", "pilots", "address"}
    }
    return ParslSiteSpec.model_validate(document).as_written(kept)


def _written(site: ParslSiteSpec, keys: set[str], differs: Mapping[str, JsonValue]) -> dict[Loc, AsWritten]:
    """Return what of the controller's request stays as the file has it, for it may be secret."""
    found: dict[Loc, AsWritten] = {}
    for loc, text in site.written.items():
        key = loc[1] if len(loc) > 1 else None
        if loc[0] == "controller" and key in differs:
            found["provider", *loc[1:]] = text
        is_asked = loc[0] == "provider" and key in keys and key not in differs
        if is_asked or loc[0] not in {"provider", "pilots", "nodes"}:
            found[loc] = text
    return found
