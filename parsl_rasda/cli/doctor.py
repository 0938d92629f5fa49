"""`parsl-rasda doctor`: try out a site before anything is queued there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.cli.options import AsJson
from parsl_rasda.cli.output import print_json, print_message, print_result

if TYPE_CHECKING:
    from rich.table import Table

    from parsl_rasda.doctor.findings import Finding

_COLOURS = {"ok": "green", "check": "yellow", "change": "red", "-": "dim"}
_UNFIT = 4

OneSite = Annotated[
    str, typer.Option("--site", metavar="SITE", help="A name in site_configs/, or a file. Default: local.")
]


def doctor(site: OneSite = "local", as_json: AsJson = False) -> None:
    """Try out a site with a small pilot: minutes, not hours.

    Checks what the batch system says of a study's own request, then GPUs per node, launcher, versions, an
    all-reduce on 1 GPU, 1 node and 2 nodes, the network, disks, clocks and the fork server, and says what to
    change. The exit code is 4 if a study would fail there.
    """
    from parsl_rasda.backends.allocation import in_this_allocation
    from parsl_rasda.doctor.examination import Doctor
    from parsl_rasda.doctor.findings import Rating
    from parsl_rasda.doctor.request import request_finding
    from parsl_rasda.private_files import private_files
    from parsl_rasda.study import load_site

    found: list[Finding] = []
    try:
        with private_files():
            declared = in_this_allocation(load_site(site))
            found.append(request_finding(declared))
            for finding in Doctor(declared).examine(print_message):
                found.append(finding)
                print_message(f"  {finding.what}: {finding.found}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    is_fit = all(f.verdict is not Rating.BAD for f in found)
    if as_json:
        rows = [
            {"what": f.what, "found": f.found, "verdict": f.verdict.value, "advice": f.advice} for f in found
        ]
        print_json({"site": site, "fit": is_fit, "findings": rows})
    else:
        print_result(_table(found))
    if not is_fit:
        raise typer.Exit(_UNFIT)


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "found", "verdict", "what to change"):
        table.add_column(column, overflow="fold")
    for f in findings:
        table.add_row(f.what, f.found, Text(f.verdict.value, _COLOURS[f.verdict.value]), f.advice)
    return table
