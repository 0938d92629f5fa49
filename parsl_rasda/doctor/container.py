"""What `doctor` makes of the container in which the ranks of a site run: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parsl_rasda.doctor.findings import Finding, Rating, good_if
from parsl_rasda.study import SiteBase

_COMPARED = ("parsl_rasda", "torch")


def where_ranks_run(there: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a worker sees, with packages and GPUs of the container if there is one.

    Args:
        there: What `node_probe.describe_allocation` saw.
    """
    inside = there.get("inside", {})
    return {**there, **{key: inside[key] for key in ("versions", "gpus") if key in inside}}


def container_findings(
    site: SiteBase, there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[Finding]:
    """Yield whether a site's container, if it has one, starts and has the packages that this machine has."""
    if site.container is None:
        return
    what, inside = f"container ({site.container.runtime})", there["inside"]
    if "error" in inside:
        advice = "correct container.image, container.python or container.options in the site file"
        yield Finding(what, inside["error"], Rating.BAD, advice)
        return
    versions = {name: (inside["versions"][name], here["versions"][name]) for name in _COMPARED}
    differ = [f"{name} {mine} here" for name, (its, mine) in versions.items() if its != mine]
    found = f"{inside['executable']}, Python {inside['python']}"
    advice = "build the image with the versions that the controller has, so that both do the same"
    yield good_if(not differ, what, ", ".join([found, *differ]), advice, otherwise=Rating.DOUBTFUL)
