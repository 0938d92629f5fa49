"""A study drafted from an experiment file of Determined, as docs/coming_from.md has it key by key.

Source: Determined's experiment configuration reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from parsl_rasda.diagnostics import is_number
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.study.draft import Draft

_FILE_OR_CLASS = re.compile(r"(?:.*/)?(\w+)\.py|([A-Za-z_][\w.]*):\w+")
_SAME = {"name", "entrypoint", "hyperparameters", "searcher", "resources", "max_restarts", "reproducibility"}
_EPOCHS, _WIDENS = 16, 8


def draft_experiment(text: str, file: str) -> Draft:
    """Return the study of an experiment, whose text is in a file that messages name.

    Raises:
        InvalidSettingError: If it is none, or has a hyperparameter that cannot be understood.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSettingError("--from", file, f"YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict) or not all(_part(data, k) for k in ("hyperparameters", "searcher")):
        allowed = "a Python script, or an experiment of Determined with `hyperparameters` and `searcher`"
        raise InvalidSettingError("--from", file, allowed)
    searcher, space = _part(data, "searcher"), _part(data, "hyperparameters")
    slots = _part(data, "resources").get("slots_per_trial")
    slots = slots if isinstance(slots, int) and slots > 0 else 1
    epochs, is_told = _epochs(searcher)
    module = _module(data.get("entrypoint", ""))
    lacking = [f"{module}.py needs a function train(trial) in place of what it calls of Determined"]
    if not is_told:
        lacking.append(f"{file} has no length in epochs: set scheduler.max_t")
    if other := sorted(set(map(str, data)) - _SAME):
        lacking.append(f"not carried over from {file}: {', '.join(other)}")
    size = next((name for name in ("batch_size", "global_batch_size") if name in space), None)
    tune = {
        "metric": searcher.get("metric", "validation_loss"),
        "mode": "min" if searcher.get("smaller_is_better", True) else "max",
        "num_samples": 1 if searcher.get("name") == "single" else searcher.get("max_trials", 16),
        "max_retries": data.get("max_restarts", 5),
        "scheduler": {
            "max_t": epochs,
            "reduction_factor": int(searcher.get("divisor", 4)),
            "num_workers": slots,
            "max_workers": _WIDENS * slots,
        },
        **({"searcher": {"kind": searcher["name"]}} if searcher.get("name") in ("random", "grid") else {}),
        "search_space": {str(name): _parameter(str(name), value) for name, value in space.items()},
        "training": {"python": f"{module}:train", **({"batch_size": size} if size else {})},
    }
    seed = _part(data, "reproducibility").get("experiment_seed", 1)
    study = yaml.safe_dump(
        {"name": "study", "seed": seed, "tune": tune}, sort_keys=False, default_flow_style=None
    )
    head = [f"# Drafted from {file}: read it, then `parsl-rasda validate` it."]
    return Draft(
        "\n".join([*head, *(f"# {s}." for s in lacking), study]), tuple(lacking), tuple(map(str, space))
    )


def _part(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _epochs(searcher: Mapping[str, Any]) -> tuple[int, bool]:
    """Return how long a trial may train, and whether the experiment says so in epochs."""
    length = searcher.get("max_length")
    found = length.get("epochs") if isinstance(length, dict) else None
    if found is None and searcher.get("time_metric") in {"epoch", "epochs"}:
        found = searcher.get("max_time")
    return (found, True) if isinstance(found, int) else (_EPOCHS, False)


def _module(entrypoint: Any) -> str:
    """Return the module of an entry point: ``python3 train.py``, ``python3 -m train``, ``train:Trial``."""
    words = [str(w) for w in entrypoint] if isinstance(entrypoint, list) else str(entrypoint).split()
    for word in reversed(words):
        if found := _FILE_OR_CLASS.fullmatch(word):
            return str(found[1] or found[2])
    return words[words.index("-m") + 1] if "-m" in words[:-1] else "train"


def _parameter(name: str, value: Any) -> Any:
    """Return a hyperparameter as a search space has it."""
    if not isinstance(value, dict):
        return value
    low, high = value.get("minval"), value.get("maxval")
    if value.get("type") == "const" and "val" in value:
        return value["val"]
    if value.get("type") == "categorical" and isinstance(value.get("vals"), list):
        return {"choice": value["vals"]}
    if is_number(low) and is_number(high):
        if value.get("type") == "int":
            return {"int": [low, high]}
        if value.get("type") == "double":
            return {"float": [float(low), float(high)]}
        if value.get("type") == "log":
            ends = (math.pow(value.get("base", 10), end) for end in (low, high))
            return {"float": [float(f"{end:.12g}") for end in ends], "log": True}
    allowed = "a type of Determined's with its bounds: log, double, int, categorical, const"
    raise InvalidSettingError(f"hyperparameters.{name}", value, allowed)
