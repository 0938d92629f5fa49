"""What earlier studies found, tried first by a new one: `searcher.learn_from`.

It is looked up once, when a study is begun. The copy of the study in its run directory has what was found
under `searcher.first`, so that whatever goes on with the run knows it and needs the earlier study no more.

Source:
    Zappella, Salinas and Archambeau 2021, arXiv:2103.16111 (RUSH): the best of each earlier search are tried
    first and measured anew, so that a search of another kind costs a few trials and misleads nobody.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parsl_rasda.diagnostics import listing
from parsl_rasda.errors import Diagnostic, InvalidFileError, RasdaError
from parsl_rasda.search.space import SearchSpace, contains, own_form
from parsl_rasda.study import StudySpec, TuneSpec
from parsl_rasda.types import JSON, Mode

BEST = 3
"""Configurations of each earlier study that are tried first."""

_SQLITE = b"SQLite format 3\0"
_COLUMNS = {"trial", "epochs", "metric"}  # of results.csv


@dataclass(frozen=True, slots=True)
class _Trial:
    """A trial of an earlier study.

    Attributes:
        rank: Smaller is better: first those that trained longest, then the better metric.
    """

    config: Mapping[str, JSON]
    rank: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _UnfitError(Exception):
    """A source that nothing can be learnt from."""

    found: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """A study that knows what earlier ones found.

    Attributes:
        sentences: What was read of each source, and what of it is used.
        problems: Sources that nothing can be learnt from, at their places in the study file.
    """

    study: StudySpec
    sentences: tuple[str, ...] = ()
    problems: tuple[Diagnostic, ...] = field(default=(), kw_only=True)

    def checked(self, source: str) -> StudySpec:
        """Return the study.

        Raises:
            InvalidFileError: If there is a problem; messages call the study ``source``.
        """
        if self.problems:
            raise InvalidFileError([Diagnostic(p.loc, p.found, p.allowed, source) for p in self.problems])
        return self.study


def learn(study: StudySpec, folder: Path) -> Learnt:
    """Return a study with the best of earlier ones under `searcher.first`.

    Args:
        study: As it was written.
        folder: What paths in it are relative to.
    """
    sentences: list[str] = []
    problems: list[Diagnostic] = []
    stages = dict(study.stages)
    for name, stage in study.tune_stages.items():
        first = [dict(config) for config in stage.tune.searcher.first]
        for number, source in enumerate(stage.tune.searcher.learn_from):
            try:
                trials = _read(source, folder, stage.tune)
                best, sentence = _best(source, trials, stage.tune)
            except _UnfitError as unfit:
                loc = ("stages", name, "tune", "searcher", "learn_from", number)
                problems.append(Diagnostic(loc, unfit.found, unfit.allowed))
                continue
            first += [config for config in best if config not in first]
            sentences.append(sentence)
        searcher = stage.tune.searcher.model_copy(update={"first": tuple(first)})
        tune = stage.tune.model_copy(update={"searcher": searcher})
        stages[name] = stage.model_copy(update={"tune": tune})
    return Learnt(study.model_copy(update={"stages": stages}), tuple(sentences), problems=tuple(problems))


def _best(source: str, trials: Sequence[_Trial], tune: TuneSpec) -> tuple[list[dict[str, JSON]], str]:
    """Return the best configurations, as far as the search has their values, and what to say of them."""
    space = SearchSpace.from_mapping(tune.search_space).parameters
    best: list[dict[str, JSON]] = []
    for trial in sorted(trials, key=lambda each: each.rank):
        known = {n: own_form(p, trial.config[n]) for n, p in space.items() if _has(trial.config, n, p)}
        if known and known not in best and len(best) < BEST:
            best.append(known)
    if not best:
        here = f"one with a value of {listing(space)}"
        raise _UnfitError(
            f"{source}, with {len(trials)} trials, none of which has a value that is searched", here
        )
    missing = [n for n, p in space.items() if not (p.when or all(n in config for config in best))]
    sentence = f"{source}: {len(trials)} trials, the best {len(best)} are tried first"
    return best, sentence + (f"; it does not have all values of {', '.join(missing)}" if missing else "")


def _has(config: Mapping[str, JSON], name: str, parameter: Any) -> bool:
    return name in config and contains(parameter, config[name])


def _read(source: str, folder: Path, tune: TuneSpec) -> list[_Trial]:
    allowed = "a run directory, a results.csv, or a storage of Optuna's (optuna.db, sqlite:///..., postgresql://...)"
    if "://" in source:
        return _of_optuna(source, source, tune)
    path = folder / Path(source).expanduser()
    try:
        if path.is_dir():
            return _of_run(source, path, tune)
        with path.open("rb") as file:
            is_database = file.read(len(_SQLITE)) == _SQLITE
        return _of_optuna(source, f"sqlite:///{path}", tune) if is_database else _of_table(source, path, tune)
    except OSError as error:
        raise _UnfitError(f"{source}, which cannot be read ({error.strerror})", allowed) from error


def _of_run(source: str, path: Path, tune: TuneSpec) -> list[_Trial]:
    from parsl_rasda.reporting.runs import read_run  # with all that a report needs

    try:
        summaries = read_run(path).summaries().values()
    except RasdaError as error:
        raise _UnfitError(f"{source}: {error}", "a run directory") from error
    fitting = [s for s in summaries if (s["metric"], s["mode"]) == (tune.metric, tune.mode.value)]
    if not fitting:
        judged = listing(f"{s['metric']} ({s['mode']})" for s in summaries)
        raise _UnfitError(f"{source}, whose trials are judged by {judged}", _wanted(tune))
    return [
        _Trial(
            trial["config"], _rank(tune, trial["epoch"], trial["metric"], is_front=trial["trial"] in front)
        )
        for summary in fitting
        for front in [{one["trial"] for one in summary["front"]}]
        for trial in summary["trial_list"]
        if trial["metric"] is not None and trial["state"] != "failed"
    ]


def _of_table(source: str, path: Path, tune: TuneSpec) -> list[_Trial]:
    """Read a results.csv: it does not say by what trials were judged."""
    space = SearchSpace.from_mapping(tune.search_space).parameters
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _UnfitError(f"{source}, which is no table", "a results.csv") from error
    if not rows or not rows[0].keys() >= _COLUMNS:
        raise _UnfitError(f"{source}, without the columns {listing(sorted(_COLUMNS))}", "a results.csv")
    found = []
    for row in rows:
        if not row["metric"] or row.get("state") == "failed":
            continue
        cells = {name: row.get(f"config.{name}") or row.get(name) for name in space}
        values = {n: _value(p, cells[n]) for n, p in space.items() if cells[n]}
        config = {name: value for name, value in values.items() if value is not None}
        is_front = row.get("is_front") == "True"
        found.append(_Trial(config, _rank(tune, int(row["epochs"]), float(row["metric"]), is_front=is_front)))
    return found


def _value(parameter: Any, cell: Any) -> JSON:
    """Return what a cell of a table stands for, if that is a value of a parameter; else None."""
    try:
        read = json.loads(cell)
    except ValueError:
        read = {"True": True, "False": False}.get(cell, cell)
    return next((each for each in (read, cell) if contains(parameter, each)), None)


def _of_optuna(source: str, url: str, tune: TuneSpec) -> list[_Trial]:
    import optuna

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise _UnfitError(f"{source}, where no file is", "a storage of Optuna's that is there")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.get_storage(url)
        names = optuna.get_all_study_names(storage)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        fitting = [study for study in studies if _fits(study, tune)]
        found = [trial for study in fitting for trial in _optuna_trials(study, tune)]
    except Exception as error:  # whatever its libraries raise
        words = " ".join(str(error).split())[:200]
        raise _UnfitError(
            f"{source}, which cannot be read ({type(error).__name__}: {words})", "a storage"
        ) from error
    finally:
        optuna.logging.set_verbosity(before)
    if not fitting:
        raise _UnfitError(f"{source}, with the studies {listing(names)}", _wanted(tune))
    return found


def _fits(study: Any, tune: TuneSpec) -> bool:
    direction = "MINIMIZE" if tune.mode is Mode.MIN else "MAXIMIZE"
    has_name = not study.metric_names or study.metric_names[0] == tune.metric
    return bool(has_name and study.directions[0].name == direction)


def _optuna_trials(study: Any, tune: TuneSpec) -> Iterator[_Trial]:
    front = {trial.number for trial in study.best_trials} if len(study.directions) > 1 else set()
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in {"COMPLETE", "PRUNED"}:
            continue
        epoch = max(trial.intermediate_values, default=0)
        metric = trial.values[0] if trial.values else trial.intermediate_values.get(epoch)
        if metric is not None:
            config = trial.user_attrs.get("config", trial.params)
            yield _Trial(config, _rank(tune, epoch, metric, is_front=trial.number in front))


def _rank(tune: TuneSpec, epoch: int, metric: float, *, is_front: bool) -> tuple[float, ...]:
    cost = metric if tune.mode is Mode.MIN else -metric
    cost = cost if math.isfinite(cost) else math.inf
    return (0.0, 0.0, cost) if is_front else (1.0, float(-epoch), cost)


def _wanted(tune: TuneSpec) -> str:
    return f"a study whose trials are judged by {tune.metric} ({tune.mode.value})"
