"""A paragraph for the methods section of a paper: what was searched how, with what, and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parsl_rasda.orchestration.replay import origin_of
from parsl_rasda.reporting.format import counted, duration, number, value_text
from parsl_rasda.reporting.runs import Run
from parsl_rasda.search.space import Choice, Constant, Float, Int, Parameter, SearchSpace
from parsl_rasda.study import TuneSpec

_NAMES = {"python": "Python", "parsl": "Parsl", "torch": "PyTorch", "optuna": "Optuna", "numpy": "NumPy"}
_RASDA = "doi:10.1016/j.future.2025.108042"


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
            _method(tune, summary),
            _versions(run, stage),
            _search(tune, run.study.seed),
            _training(tune),
            _hardware(run, summary),
            *_outcome(summary),
        ]
    )


def _method(tune: TuneSpec, summary: Mapping[str, Any]) -> str:
    method = tune.scheduler
    most = f" to at most {method.most_workers}" if method.max_workers is not None else ""
    replicas = (
        f"the number of data-parallel replicas grew by a factor of {method.scaling_factor} from "
        f"{method.num_workers}{most}"
        if method.kind == "rasda" and method.scaling_factor > 1
        else f"each trial had {counted(method.num_workers, 'data-parallel replica')}"
    )
    better = "smaller" if summary["mode"] == "min" else "larger"
    return (
        f"Hyperparameters were tuned by {method.kind.upper()} ({_RASDA}; variant {method.variant}): trials "
        f"trained for at most {counted(method.max_t, 'epoch')} and were judged by {tune.metric} ({better} is "
        f"better) after {_words([str(r['epochs']) for r in summary['rungs']])} epochs, where one in "
        f"{method.reduction_factor} went on; {replicas}."
    )


def _versions(run: Run, stage: str) -> str:
    noted: Mapping[str, str] = origin_of(run.directory).get("versions", {})
    own = run.searches[stage].version or "of before 0.2"
    others = [f"{name} {noted[key]}" for key, name in _NAMES.items() if key in noted]
    with_ = f" with {_words(others)} on the controller" if others else " (other versions were not noted)"
    return f"The software was parsl_rasda {own}{with_}."


def _search(tune: TuneSpec, seed: int) -> str:
    space = SearchSpace.from_mapping(tune.search_space)
    searched = [_parameter(n, p) for n, p in space.parameters.items() if not isinstance(p, Constant)]
    fixed = [f"{n} = {value_text(p.value)}" for n, p in space.parameters.items() if isinstance(p, Constant)]
    also = f"; fixed were {_words(fixed)}" if fixed else ""
    return (
        f"{counted(tune.num_samples, 'configuration')} came from the {tune.searcher.kind} searcher (seed "
        f"{seed}) over {'; '.join(searched) or 'no parameter'}{also}."
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
    when = [f"{n} is {value_text(v)}" for n, v in parameter.when.items()]
    return f"{text} (where {_words(when)})" if when else text


def _training(tune: TuneSpec) -> str:
    training = tune.training
    size = f"{training.batch_size} samples" if isinstance(training.batch_size, int) else "as many samples"
    each = "a replica" if tune.scheduler.batch == "doubling" else "a unit"
    rate = f"learning rates scaled by rule `{training.lr_scaling}`"
    return (
        f"A step had {size} {each} (batch: {tune.scheduler.batch}), in {training.precision}, with gradients "
        f"reduced by `{training.reduce}` and {rate}."
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
    states = [f"{trials[s]} were {s}" for s in ("completed", "stopped", "failed") if trials.get(s)]
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
