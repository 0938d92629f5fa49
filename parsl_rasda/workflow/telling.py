"""What a user tells a study that stands or runs: examined here, before any of it is written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.diagnostics import listing, shown, suggestion
from parsl_rasda.errors import Diagnostic, InvalidFileError, InvalidSettingError
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import load_run_study, replay_search
from parsl_rasda.orchestration.requests import write_request
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.search.space import Parameter, SearchSpace, contains, own_form, same_value
from parsl_rasda.study import StudySpec, TuneSpec
from parsl_rasda.study.document import parse_value
from parsl_rasda.types import JSON

_SOURCE = "tell"
_ALONE = (
    "`variant: synchronous` compares the first `num_samples` trials with each other: one more than those "
    "competes with nobody and trains to `max_t`"
)


def tell_study(
    directory: Path,
    *,
    stop: Sequence[str] = (),
    at_most: int | None = None,
    add: Sequence[str] = (),
    retry_failed: bool = False,
    stage: str | None = None,
) -> str:
    """Write down what a study is told, all of it or nothing; return in words who takes it up.

    Args:
        directory: The run's.
        stop: Trials that are to end.
        at_most: So many trials at a time; 0 for any number.
        add: Configurations, as YAML.
        retry_failed: Trials that failed start afresh.
        stage: Which search, where a study has several.

    Raises:
        RunDirectoryError: If it is not the directory of a run.
        InvalidFileError: If nothing is told, or something that cannot be; with every mistake.
    """
    run = RunDirectory(directory.resolve())
    study = load_run_study(run)
    name = _stage_of(study, stage)
    tune = study.tune_stages[name].tune
    place = run if len(study.tune_stages) == 1 else RunDirectory(run.path / name)
    machine = replay_search(place, study.name, tune).machine
    wanted = [name for name, is_asked in (("--add", add), ("--retry-failed", retry_failed)) if is_asked]
    mistakes = [*_wrong_trials(machine, stop), *_unwanted(machine, wanted)]
    requests: list[Mapping[str, Any]] = [{"stop": trial} for trial in stop]
    requests += [{"at_most": at_most}] if at_most is not None else []
    requests += [{"retry_failed": True}] if retry_failed else []
    for text in add:
        try:
            requests.append({"add": configuration(tune, text)})
        except InvalidFileError as error:
            mistakes += error.mistakes
    if not requests and not mistakes:
        mistakes.append(_mistake("options", "none", "--stop, --at-most, --add, --retry-failed"))
    if mistakes:
        raise InvalidFileError(mistakes)
    place.path.mkdir(exist_ok=True)
    for request in requests:
        write_request(place.requests, request)
    note = f"; {_ALONE}" if add and tune.scheduler.variant == "synchronous" else ""
    controller = run.controller
    if controller is None:
        return f"noted: nobody runs it, `parsl-rasda resume` takes it up{note}"
    return f"told: {controller} takes it up within seconds{note}"


def configuration(tune: TuneSpec, text: str) -> dict[str, JSON]:
    """Return a configuration of a search space that a user has written.

    Raises:
        InvalidFileError: If it is none.
    """
    space = SearchSpace.from_mapping(tune.search_space)
    document = parse_value(text, "--add", (), {})
    if document.mistakes:
        raise InvalidFileError(document.mistakes)
    found = document.data
    if not isinstance(found, Mapping):
        raise InvalidFileError([_mistake("--add", shown(text), "a configuration, as {lr: 0.1, ...}")])
    given = {str(key): value for key, value in found.items()}
    config = space.configure(lambda name, parameter: _as_given(parameter, given.get(name)))
    is_other = any(not same_value(config.get(name), value) for name, value in given.items())
    if is_other or not space.accepts(config):
        forms = ", ".join(f"{key}: {shown(value)}" for key, value in tune.search_space.items())
        raise InvalidFileError([_mistake("--add", shown(text), f"a configuration of {{{forms}}}")])
    try:
        tune.training.resolve(config)
    except InvalidSettingError as error:
        raise InvalidFileError([_mistake("--add", shown(text), str(error))]) from None
    return config


def _as_given(parameter: Parameter, value: JSON) -> JSON:
    return own_form(parameter, value) if contains(parameter, value) else value


def _stage_of(study: StudySpec, stage: str | None) -> str:
    names = list(study.tune_stages)
    if stage is None and len(names) == 1:
        return names[0]
    if stage not in names:
        allowed = f"a search of this study: {listing(names)}" + (suggestion(stage, names) if stage else "")
        raise InvalidFileError([_mistake("--stage", shown(stage) if stage else "nothing", allowed)])
    return stage


def _wrong_trials(machine: Machine, trials: Sequence[str]) -> Iterator[Diagnostic]:
    """Yield the trials that are not there, or have ended."""
    going = [trial.id for trial in machine.trials.values() if not trial.state.is_final]
    allowed = f"a trial that has not ended: {listing(going)}" if going else "nothing: no trial goes on"
    known = {str(trial.id): trial for trial in machine.trials.values()}
    for name in trials:
        if name not in known:
            yield _mistake("--stop", f"{shown(name)}, no trial of this search", allowed)
        elif known[name].state.is_final:
            yield _mistake("--stop", f"{shown(name)}, which is {known[name].state.value}", allowed)


def _unwanted(machine: Machine, options: Sequence[str]) -> Iterator[Diagnostic]:
    """Yield the options that let trials begin, if the search wants no more."""
    if machine.found:
        for option in options:
            found = f"a search that `stop_when` has ended: {machine.found}"
            yield _mistake(option, found, "a search that goes on")


def _mistake(option: str, found: str, allowed: str) -> Diagnostic:
    return Diagnostic((option,), found, allowed, _SOURCE)
