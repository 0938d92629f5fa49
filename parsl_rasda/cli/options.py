"""Options and arguments that several commands share, and the loading of the files they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from parsl_rasda.errors import Diagnostic, InvalidFileError
from parsl_rasda.types import SiteName

if TYPE_CHECKING:
    from parsl_rasda.orchestration.admission import AdmittedStudy
    from parsl_rasda.study import SiteSpec, StudySpec

DEFAULT_SITES = ("local",)


def _names_of_sites(incomplete: str) -> list[str]:
    from parsl_rasda.study.loading import site_names

    return [name for name in site_names() if name.startswith(incomplete)]


StudyFile: TypeAlias = Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).")]
RunFolder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="Run directory.")]
Sites: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        metavar="SITE",
        help="A name in site_configs/, or a file; may be repeated. Default: local.",
        autocompletion=_names_of_sites,
    ),
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of the study, e.g. tune.num_samples=64; may be repeated.",
    ),
]
RetryFailed: TypeAlias = Annotated[
    bool, typer.Option("--retry-failed", help="Let the trials that failed start afresh, once it is mended.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def load_inputs(study: Path, sites: Sequence[str], overrides: Sequence[str] = ()) -> AdmittedStudy:
    """Return a study and its sites if the study can run on them; say what is used of earlier studies.

    Raises:
        InvalidFileError: With every mistake of all files together.
        InvalidSettingError: If a site is named twice, or two sites are the same pilot.
        PlacementImpossibleError: If a trial could never get the GPUs it needs.
    """
    from parsl_rasda.backends.allocation import counted_here
    from parsl_rasda.orchestration.admission import admit, tune_problems
    from parsl_rasda.orchestration.data_locality import site_problems
    from parsl_rasda.study import load_study
    from parsl_rasda.workflow.earlier_studies import learn

    found, unread = _load_sites(sites)
    names = [SiteName(s.name) for s in found]
    is_clear = bool(names) and not unread and len(set(names)) == len(names)
    mistakes: list[Diagnostic] = []
    spec: StudySpec | None = None
    try:
        spec = load_study(
            study,
            overrides,
            check_tune=tune_problems,
            check_study=lambda spec: (
                *(site_problems(spec, names) if is_clear else ()),
                *learn(spec, study.parent).problems,
            ),
        )
    except InvalidFileError as error:
        mistakes += error.mistakes
    if mistakes or unread or spec is None:
        raise InvalidFileError([*mistakes, *unread])
    learnt = learn(spec, study.parent)
    admitted = admit(learnt.study, found, counted_here(found), files=sites)
    for sentence in learnt.sentences:
        typer.echo(f"{study}: {sentence}", err=True)
    return admitted


def load_run_inputs(run: Path, sites: Sequence[str], overrides: Sequence[str] = ()) -> AdmittedStudy:
    """Return the study of a run, with changes, and its sites or others, if the study can run on them.

    Args:
        run: The run directory.
        sites: Instead of those of the run, if there are any.
        overrides: Settings of the study, as ``key=value``.

    Raises:
        RunDirectoryError: If it is not one of a run.
        InvalidFileError: With the mistakes of the changes and of the sites.
        PlacementImpossibleError: If a trial could never get the GPUs it needs.
    """
    from parsl_rasda.backends.allocation import counted_here
    from parsl_rasda.orchestration.admission import admit, tune_problems
    from parsl_rasda.orchestration.replay import load_run_study
    from parsl_rasda.orchestration.run_directory import RunDirectory
    from parsl_rasda.study import load_study

    directory = RunDirectory(run)
    load_run_study(directory)  # it is one of a run
    file = directory.study_file
    spec = load_study(file, overrides, check_targets=False, is_copy=True, check_tune=tune_problems)
    files = sites or [str(path) for path in sorted(directory.sites.glob("*.yaml"))]
    found, unread = _load_sites(files)
    if unread:
        raise InvalidFileError(unread)
    return admit(spec, found, counted_here(found), files=files)


def _load_sites(sites: Sequence[str]) -> tuple[list[SiteSpec], list[Diagnostic]]:
    from parsl_rasda.backends.allocation import in_this_allocation
    from parsl_rasda.study import load_site

    found: list[SiteSpec] = []
    mistakes: list[Diagnostic] = []
    for site in sites:
        try:
            found.append(in_this_allocation(load_site(site)))
        except InvalidFileError as error:
            mistakes += error.mistakes
    return found, mistakes
