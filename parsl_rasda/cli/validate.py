"""`parsl-rasda validate`: every mistake at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from parsl_rasda.cli.options import Overrides, Sites, StudyFile, load_inputs

if TYPE_CHECKING:
    from parsl_rasda.study import SiteSpec, StudySpec


def validate(study: StudyFile, site: Sites = None, overrides: Overrides = None) -> None:
    """Check a study and sites; print every mistake at once.

    Each with file and line, what was found and what is allowed; the exit code is 2 if there is one.
    """
    from parsl_rasda.orchestration.assembly import build_machine, build_study_searcher

    spec, sites = load_inputs(study, site or (), overrides or ())
    for stage in spec.tune_stages.values():
        build_machine(stage.tune)
        build_study_searcher(stage.tune, spec.seed)
    typer.echo(f"{study}: ok ({_about_study(spec)})")
    for name, found in zip(site or (), sites, strict=True):
        typer.echo(f"{name}: ok ({_about_site(found)})")


def _about_study(study: StudySpec) -> str:
    searches = [
        f"{s.tune.num_samples} trials of up to {s.tune.scheduler.max_t} epochs"
        for s in study.tune_stages.values()
    ]
    return ", ".join([f"{len(study.stages)} stage{'s' * (len(study.stages) > 1)}", *searches])


def _about_site(site: SiteSpec) -> str:
    per_node = "GPUs counted there" if site.gpus_per_node == "auto" else f"{site.gpus_per_node} GPUs each"
    nodes = site.nodes_per_pilot
    return f"{site.pilots} x {nodes} node{'s' * (nodes > 1)}, {per_node}, {site.mpi_launcher}"
