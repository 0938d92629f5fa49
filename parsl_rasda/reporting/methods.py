"""A paragraph for the methods section of a paper: what was searched how, with what, and what it took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from parsl_rasda.orchestration.events import TrialProposed
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.orchestration.replay import origin_of
from parsl_rasda.orchestration.summary import NOT_TRIED
from parsl_rasda.plugins import kind_of
from parsl_rasda.reporting.format import counted, duration, number, value_text
from parsl_rasda.reporting.runs import Run
from parsl_rasda.search.space import Choice, Constant, Float, Int, Parameter, SearchSpace
from parsl_rasda.study import TuneSpec
from parsl_rasda.study.epochs import UpTo
from parsl_rasda.study.scheduler import SchedulerSpec

_NAMES = {"python": "Python", "parsl": "Parsl", "torch": "PyTorch", "optuna": "Optuna", "numpy": "NumPy"}
_PAPERS = {"rasda": "doi:10.1016/j.future.2025.108042", "asha": "arXiv:1810.05934"}


def methods_text(run: Run, stage: str, summary: Mapping[str, Any]) -> str:
    """Return the paragraph about one search, as far as its run directory knows.

    Args:
        run: The run.
        stage: The search's stage.
        summary: Its JSON document.
    """
    tune = run.study.tune_stages[stage].tune
    return " ".join(
        [
            _method(tune, summary, run.slot_kind),
            _versions(run, stage),
            _search(tune, run.study.seed, run.searches[stage].records),
            _training(tune),
            _hardware(run, summary),
            *_outcome(summary),
        ]
    )


def _method(tune: TuneSpec, summary: Mapping[str, Any], slots: str) -> str:
    method = tune.scheduler
    paper = f"{_PAPERS[method.kind]}; variant {method.variant}" if method.kind in _PAPERS else "a plug-in"
    better = "smaller" if summary["mode"] == "min" else "larger"
    rungs = [str(r["epochs"]) for r in summary["rungs"] if r["epochs"] < method.max_t]
    at = f" after {_words(rungs)} {'epoch' if rungs == ['1'] else 'epochs'}" if rungs else ""
    rule = f", where one in {method.reduction_factor} went on" if rungs and method.kind in _PAPERS else ""
    if isinstance(method.max_t, UpTo):
        rule += ", and longer only while the rankings at the two highest rungs were not the same (PASHA)"
    if kind_of(method.early) != "none":
        rule += f"; between rungs, trials without a chance were stopped ({kind_of(method.early)} rule)"
    name = method.kind.upper() if method.kind in _PAPERS else method.kind
    return (
        f"Hyperparameters were tuned by {name} ({paper}): trials trained for at most "
        f"{counted(method.max_t, 'epoch')} and were judged by {tune.metric} ({better} is better){at}{rule}"
        f"{_brackets(method)}; "
        f"{_parallelism(tune.scheduler, slots)}."
    )


def _brackets(method: SchedulerSpec) -> str:
    grace_periods = method.grace_periods
    if len(grace_periods) == 1:
        return ""
    first = _words([str(epochs) for epochs in grace_periods])
    chosen = (
        "later trials went to the one whose first rung ranked them best for its cost (after arXiv:2201.06834)"
        if method.brackets == "auto"
        else "in the proportions of Hyperband (arXiv:1603.06560)"
    )
    return f", in {len(grace_periods)} brackets first judged after {first} epochs, {chosen}"


def _parallelism(method: SchedulerSpec, slots: str) -> str:
    first, most = method.num_workers, method.most_workers
    grows = method.kind == "rasda" and most > first
    if method.batch != "doubling":
        replicas = f"each trial had {counted(most, 'data-parallel replica')}"
    elif grows:
        replicas = (
            f"the data-parallel replicas of a trial grew by a factor of {method.scaling_factor} at each "
            f"rung, from {first} to at most {most}"
        )
    else:
        verb = "had" if method.kind in _PAPERS else "began with"
        replicas = f"each trial {verb} {counted(first, 'data-parallel replica')}"
    if method.kind not in _PAPERS:
        return replicas
    growth, slot = kind_of(method.growth), slots.removesuffix("s")
    on = f"{first} to {most} {slot}s" if grows and growth != "none" else counted(first, slot)
    return f"{replicas}, on {on}" + f" (growth: {growth})" * grows


def _versions(run: Run, stage: str) -> str:
    noted: Mapping[str, str] = origin_of(run.directory).get("versions", {})
    own = run.searches[stage].version or "of before 0.2"
    others = [f"{name} {noted[key]}" for key, name in _NAMES.items() if key in noted]
    with_ = f" with {_words(others)} on the controller" if others else " (other versions were not noted)"
    return f"The software was parsl_rasda {own}{with_}."


def _search(tune: TuneSpec, seed: int, records: Iterable[Record]) -> str:
    tried = [r.event for r in records if isinstance(r.event, TrialProposed)]
    added = sum(event.told is not None for event in tried)
    more = f"; {added} more came from the user" if added else ""
    known = len(tune.searcher.first)
    first = f"; the first {counted(known, 'configuration')} had been given" if known else ""
    space = SearchSpace.from_mapping(tune.search_space)
    searched = [_parameter(n, p) for n, p in space.parameters.items() if not isinstance(p, Constant)]
    fixed = [f"{n} = {value_text(p.value)}" for n, p in space.parameters.items() if isinstance(p, Constant)]
    also = f"; fixed were {_words(fixed)}" if fixed else ""
    return (
        f"{counted(len(tried) - added, 'configuration')} came from the {tune.searcher.kind} searcher (seed "
        f"{seed}) over {'; '.join(searched) or 'no parameter'}{also}{more}{first}."
    )


def _parameter(name: str, parameter: Parameter) -> str:
    match parameter:
        case Choice(values):
            text = f"{name} in {{{', '.join(value_text(v) for v in values)}}}"
        case Float(low, high, log) | Int(low, high, log):
            kind = "an integer" if isinstance(parameter, Int) else "a real number"
            text = f"{name}, {kind} in [{number(low)}, {number(high)}]" + ", log-uniform" * log
        case _:
            text = name
    if not isinstance(parameter, Constant) and parameter.prior is not None:
        text += f", believed to be near {value_text(parameter.prior)} (confidence {parameter.confidence})"
    when = [f"{n} is {value_text(v)}" for n, v in parameter.when.items()]
    return f"{text} (where {_words(when)})" if when else text


def _training(tune: TuneSpec) -> str:
    training, method = tune.training, tune.scheduler
    size = f"`{training.batch_size}`" if isinstance(training.batch_size, str) else str(training.batch_size)
    samples = {
        "doubling": f"{size} samples a replica",
        "constant": f"{size} samples in all",
        "measured": f"{method.num_workers} x {size} samples at the start of a trial, and more as far as the "
        "noise scale of its gradients allowed",
    }
    return (
        f"A step had at most {samples[method.batch]} (batch: {method.batch}), in {training.precision}, with "
        f"gradients reduced by `{training.reduce}` and learning rates scaled by rule `{training.lr_scaling}`."
    )


def _hardware(run: Run, summary: Mapping[str, Any]) -> str:
    models = sorted({name for t in summary["trial_list"] for name in t["devices"]})
    on = f" ({_words(models)})" if models else ""
    kind = run.slot_kind
    return (
        f"Trials ran on {kind} of {_words(run.sites) or 'a site'}{on}, which the study held for "
        f"{summary['gpu_hours']:.3g} {kind.removesuffix('s')}-hours in {duration(summary['makespan_s'])}."
    )


def _outcome(summary: Mapping[str, Any]) -> Iterator[str]:
    trials, best = summary["trials"], summary["best"]
    shown = ("completed", "stopped", "failed", NOT_TRIED)
    states = [f"{trials[s]} were {s.replace('_', ' ')}" for s in shown if trials.get(s)]
    faults = summary["faults"]["count"] + summary["faults"]["preemptions"]
    went = f"; {counted(faults, 'fault or preemption')} cost time only" if faults else ""
    if (energy := summary["energy"])["kwh"] is not None:
        known = f"{energy['jobs_metered']} of {counted(energy['jobs'], 'job')}"
        yield f"Their devices drew {energy['kwh']:.3g} kWh, metered in {known}."
    yield f"Of {counted(trials['total'], 'trial')}, {_words(states) or 'none has ended'}{went}."
    if best:
        yield (
            f"The best had {summary['metric']} {number(best['metric'])} after "
            f"{counted(best['epoch'], 'epoch')}."
        )


def _words(parts: Any) -> str:  # Any: a sequence of words
    *most, last = list(parts) or [""]
    return f"{', '.join(most)} and {last}" if most else last
