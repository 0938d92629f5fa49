"""What is refused before anything starts: settings that nothing can run with, trials that no pilot can hold.

Pure: a study is looked at as it was declared, before a stage runs or a pilot is asked for. What a
pilot turns out to be later is for the machine to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ValidationError

from parsl_rasda.diagnostics import Plain, diagnostics_in, shown
from parsl_rasda.errors import Diagnostic, InvalidSettingError, PlacementImpossibleError
from parsl_rasda.orchestration.assembly import build_machine, build_study_searcher
from parsl_rasda.orchestration.data_locality import constants, site_problems, usable
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.placement.ledger import Ledger
from parsl_rasda.study import SearcherSpec, SiteBase, SiteSpec, StudySpec, TuneSpec
from parsl_rasda.types import NodeName, NodeSlots, PilotId, SiteName

# Harmless parts of a `tune` block, in place of those that its spec refuses.
_STAND_INS = {
    "metric": "metric",
    "num_samples": 1,
    "scheduler": {"max_t": 1},
    "search_space": {"x": 0},
    "training": {"command": ["true"]},
}


@dataclass(frozen=True, slots=True)
class AdmittedStudy:
    """A study that could run on its sites, as `admit` has found: the only thing that is run."""

    study: StudySpec
    sites: tuple[SiteSpec, ...]


def admit(
    study: StudySpec, sites: Sequence[SiteSpec], counted: Mapping[str, int], *, files: Sequence[str] = ()
) -> AdmittedStudy:
    """Refuse what could never end well, before a stage runs or a pilot is asked for.

    Args:
        study: What would run.
        sites: Where; without any, only the study itself is looked at.
        counted: GPUs per node of sites that leave it to be counted, by name.
        files: What was read for each site, for the message.

    Raises:
        InvalidSettingError: If a stage names a site that is not there, two sites have one name or are one
            pilot, or a searcher refuses its options.
        PlacementImpossibleError: If a trial could never have the GPUs it needs.
    """
    names = [SiteName(site.name) for site in sites]
    if len(set(names)) < len(names):
        raise InvalidSettingError("--site", ", ".join(names), "sites with different names")
    check_searchers(study)
    check_pilots(sites, files)
    if sites:
        check_sites(study, names)
    check_fit(study, sites, counted)
    return AdmittedStudy(study, tuple(sites))


class PilotShape(NamedTuple):
    """The nodes of every pilot of a site, and the slots of each."""

    nodes: int
    gpus_per_node: int

    @property
    def slots(self) -> int:
        """Slots of a pilot."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes" if self.nodes > 1 else "1 node"
        return f"{self.slots} ({nodes} of {self.gpus_per_node})"


# --------------------------------------------------------------------------------------- settings


def tune_problems(plain: Plain) -> Iterator[Diagnostic]:
    """Yield what the scheduler, the growth policy or the searcher of a `tune` block would refuse.

    Its spec does not know their options. A part that the spec refuses is left out, so that one
    reading of a file names all that is wrong with it.

    Args:
        plain: The block as it was written.
    """
    tune = _sound_parts(plain)
    if tune is None:
        return
    if refusal := _refusal(build_machine, tune):
        yield _problem(refusal)
    seen: set[str] = set()
    while (refusal := _refusal(build_study_searcher, tune, 0)) and refusal.key not in seen:
        yield _problem(refusal)
        seen.add(refusal.key)
        tune = _without(tune, refusal.key.removeprefix("searcher."))  # it may hide another one


def check_searchers(study: StudySpec) -> None:
    """Refuse a study that was declared in code, where no file has been read that could be wrong.

    Raises:
        InvalidSettingError: If a searcher has an option that it does not know, or a wrong one.
    """
    for stage in study.tune_stages.values():
        build_study_searcher(stage.tune, study.seed)


def check_sites(study: StudySpec, sites: Sequence[SiteName]) -> None:
    """Refuse a study that does not go with its sites (`data_locality.site_problems`).

    Raises:
        InvalidSettingError: For the first thing that is wrong.
    """
    for problem in site_problems(study, sites):
        raise InvalidSettingError(".".join(map(str, problem.loc)), problem.found, problem.allowed)


def _sound_parts(plain: Plain) -> TuneSpec | None:
    wrong: set[object] = set()
    while True:
        sound = {key: value for key, value in plain.items() if key not in wrong}
        try:
            return TuneSpec.model_validate({**_STAND_INS, **sound} if wrong else sound)
        except ValidationError as error:
            found = {p.loc[0] for p in diagnostics_in(error) if p.loc}
            if found <= wrong:
                return None
            wrong |= found


def _refusal(build: Callable[..., object], *arguments: object) -> InvalidSettingError | None:
    try:
        build(*arguments)
    except InvalidSettingError as error:
        return error
    return None


def _problem(refusal: InvalidSettingError) -> Diagnostic:
    return Diagnostic(tuple(refusal.key.split(".")), shown(refusal.found), refusal.allowed)


def _without(tune: TuneSpec, option: str) -> TuneSpec:
    left = {key: value for key, value in tune.searcher.options.items() if key != option}
    return tune.model_copy(
        update={"searcher": SearcherSpec.model_validate({**left, "kind": tune.searcher.kind})}
    )


def check_pilots(sites: Sequence[SiteSpec], files: Sequence[str] = ()) -> None:
    """Refuse two sites that are one pilot, whose slots would count twice.

    Args:
        sites: Where a study would run.
        files: What was read for each of them, for the message.

    Raises:
        InvalidSettingError: If two have the same endpoint and the same values for its template.
    """
    seen: dict[str, str] = {}
    for number, site in enumerate(sites):
        if identity := site.pilot_identity:
            words = f"{site.name} ({files[number]})" if files else site.name
            other = seen.setdefault(identity, words)
            if other != words:
                found = (
                    f"{other} and {words}: the same endpoint_id and user_endpoint_config, which is one pilot"
                )
                allowed = (
                    "one of them, or a pilot of its own for one, by `study: NAME` in user_endpoint_config"
                )
                raise InvalidSettingError("--site", found, allowed)


# ------------------------------------------------------------------------------------------ sizes


def check_fit(study: StudySpec, sites: Sequence[SiteSpec], counted: Mapping[str, int]) -> None:
    """Refuse a study one of whose trials could never have the GPUs it needs.

    A search that may use a site whose pilots nobody knows passes: the machine will see.

    Args:
        study: What would run.
        sites: Where.
        counted: GPUs per node of sites that leave it to be counted, by name.

    Raises:
        PlacementImpossibleError: If no pilot of any site is large enough.
    """
    for name, stage in study.tune_stages.items():
        block = "tune" if len(study.tune_stages) == 1 else f"stages.{name}.tune"
        given = constants(stage, [SiteName(s.name) for s in sites])
        check_search_fit(stage.tune, usable(stage, sites, given), counted, block)


def check_search_fit(
    tune: TuneSpec, sites: Sequence[SiteBase], counted: Mapping[str, int], block: str = "tune"
) -> None:
    """Refuse one search as `check_fit` does; ``block`` is its key, for the advice.

    Raises:
        PlacementImpossibleError: If no pilot of any site is large enough.
    """
    shapes = [PilotShape(s.nodes_per_pilot, slots_per_node(s, counted)) for s in sites]
    if shapes and all(shape.slots for shape in shapes):
        refusal = misfit(build_machine(tune), shapes, f"{block}.scheduler")
        if refusal is not None:
            raise refusal


def slots_per_node(site: SiteBase, counted: Mapping[str, int]) -> int:
    """Return the GPUs of a node of a site, 0 if nobody knows."""
    return counted.get(site.name, 0) if site.gpus_per_node == "auto" else site.gpus_per_node


def widths_needed(machine: Machine) -> list[int]:
    """Return the GPUs that a trial cannot start without, rung by rung."""
    replicas, workers = machine.scheduler.replicas, machine.settings.num_workers
    return [machine.growth.needs(replicas(k), workers) for k in range(len(machine.scheduler.milestones))]


def misfit(machine: Machine, shapes: Sequence[PilotShape], block: str) -> PlacementImpossibleError | None:
    """Return why a trial could never have the GPUs it needs at some rung, or None if it could.

    Args:
        machine: One that has not begun.
        shapes: A pilot of each site there is.
        block: The key of the `scheduler` block, for the advice.
    """
    ledger = Ledger()
    for number, shape in enumerate(shapes):
        gpus = tuple(range(shape.gpus_per_node))
        nodes = [NodeSlots(NodeName(str(i)), gpus) for i in range(shape.nodes)]
        ledger.add_pilot(PilotId(str(number)), SiteName(str(number)), nodes)
    needs = widths_needed(machine)
    rung = next((k for k, width in enumerate(needs) if not ledger.can_ever_fit(width)), None)
    if rung is None:
        return None
    if rung == 0:
        most = min(needs[0] - 1, ledger.largest)
        narrower = next(w for w in range(most, 0, -1) if ledger.can_ever_fit(w))
        advice = f"Set `{block}.num_workers` to {narrower}"
    else:
        most = machine.scheduler.replicas(rung - 1)
        advice = f"Set `{block}.max_workers` to {most} or `{block}.growth` to elastic"
    return PlacementImpossibleError(needs[rung], str(max(shapes, key=lambda s: s.slots)), advice)
