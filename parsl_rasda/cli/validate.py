"""`parsl-rasda validate`: every mistake at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from parsl_rasda.cli.options import Overrides, Sites, StudyFile, load_inputs
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.format import counted, slot_kind

if TYPE_CHECKING:
    from parsl_rasda.search.base import Searcher
    from parsl_rasda.study import SiteSpec, TuneSpec


def validate(
    study: StudyFile,
    site: Sites = None,
    overrides: Overrides = None,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the batch system of each site, too; nothing is queued.")
    ] = False,
) -> None:
    """Check a study and sites; print every mistake at once.

    Each has file and line, what was found and what is allowed; the exit code is 2 if there is a mistake.
    """
    from parsl_rasda.orchestration.assembly import build_study_searcher
    from parsl_rasda.orchestration.batch_limits import limits_of_batches

    admitted = load_inputs(study, site or (), overrides or ())
    spec, sites = admitted.study, admitted.sites
    tunes = [stage.tune for stage in spec.tune_stages.values()]
    searches = [_about_search(tune, build_study_searcher(tune, spec.seed)) for tune in tunes]
    stages = counted(len(spec.stages), "stage")
    typer.echo(f"{study}: ok ({', '.join([stages, *searches])})")
    for tune in tunes:
        for sentence in (*tune.advice, *limits_of_batches(tune, tune.estimates.samples)):
            typer.echo(f"{study}: {sentence}")
    for name, found in zip(site or (), sites, strict=True):
        typer.echo(f"{name}: ok ({_about_site(found)})")
        if online:
            typer.echo(f"{name}: {_asked(found)}")


def _asked(site: SiteSpec) -> str:
    """Return what the batch system of a site says of its pilots.

    Raises:
        InvalidSettingError: If it would refuse them.
    """
    from parsl_rasda.backends.parsl.request_check import check_request

    answer = check_request(site)
    if answer is None:
        return "its batch system cannot be asked"
    if not answer.is_taken:
        allowed = "what its batch system takes"
        raise InvalidSettingError(f"site {site.name}: provider", answer.words, allowed)
    return f"its batch system would take a pilot: {answer.words}"


def _about_search(tune: TuneSpec, searcher: Searcher) -> str:
    from parsl_rasda.search.designs import GridSearcher
    from parsl_rasda.study.parameters import with_prior

    trials, epochs = counted(tune.num_samples, "trial"), counted(tune.scheduler.max_t, "epoch")
    points = len(searcher) if isinstance(searcher, GridSearcher) else 0
    of_grid = f" of the {points} points of its grid" if points > tune.num_samples else ""
    first = tune.searcher.first
    known = f", {counted(len(first), 'known configuration')} first" if first else ""
    believed = f", priors of {', '.join(names)}" if (names := with_prior(tune.search_space)) else ""
    return f"{trials}{of_grid}, of up to {epochs}{known}{believed}"


def _about_site(site: SiteSpec) -> str:
    from parsl_rasda.plugins import kind_of

    slots = slot_kind(site.accelerator)
    per_node = (
        f"{slots} counted there" if site.gpus_per_node == "auto" else f"{site.gpus_per_node} {slots} each"
    )
    nodes = site.nodes_per_pilot
    least, most = site.least_pilots, site.most_pilots
    pilots = f"{most}" if least == most else f"{least} to {most}"
    return f"{pilots} x {counted(nodes, 'node')}, {per_node}, {kind_of(site.mpi_launcher)}"
