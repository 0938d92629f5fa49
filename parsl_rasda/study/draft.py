"""A study drafted around a script: its command line, and a search space from types, defaults and choices.

A draft is to be read and changed. It says beside each line what it was made from, and what the script still
lacks to be tuned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from parsl_rasda.diagnostics import is_number
from parsl_rasda.study.training import TRAINING_PLACEHOLDERS
from parsl_rasda.study_code.script import Script, ScriptArgument

_DEFAULT_EPOCHS = 8
_SMALLEST_WIDTH = 8  # whole numbers from here on that are powers of two are searched in powers of two

# What a trial is told, by the names that scripts have for it.
_ROLES: dict[str, tuple[str, ...]] = {
    "until": ("epochs", "num_epochs", "n_epochs", "max_epochs", "epoch", "nepochs", "num_train_epochs"),
    "checkpoint": ("resume", "checkpoint", "resume_from", "resume_from_checkpoint", "load", "ckpt"),
    "out": ("save", "out", "output", "output_dir", "out_dir", "save_dir", "checkpoint_dir", "save_path"),
    "report": ("report", "metrics_file", "results", "metrics", "result_file", "report_file"),
    "batch_size": ("batch_size", "bs", "train_batch_size", "batch"),
    "seed": ("seed", "random_seed", "manual_seed"),
}
_TASKS = {
    "until": "how many epochs are done when it ends",
    "checkpoint": "the folder to go on from, empty for a new trial",
    "out": "the folder to save into, which becomes the next checkpoint",
    "report": 'the file for its result, JSON such as {{"{metric}": 0.12}}',
}
# Whose values change how it trains; of others a draft is a comment.
_SEARCHED = re.compile(
    r"(^|_)(lr|learning_rate|weight_decay|wd|momentum|dropout|beta\d?|alpha|gamma|eps|epsilon|optim(izer)?"
    r"|hidden\w*|width|depth|layers?|num_layers|n_layers|units|channels|heads|embed\w*|dim|activation|act"
    r"|sched(uler)?|loss|model|arch|label_smoothing|warmup\w*|clip\w*|temperature|rank)$"
)
_LOGARITHMIC = re.compile(r"(^|_)(lr|learning_rate|weight_decay|wd|eps|epsilon|alpha|temperature)$")
# Of those that a script has no default for.
_USUAL = {
    "lr": 0.01,
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "wd": 1e-4,
    "momentum": 0.9,
    "dropout": 0.1,
}
_METRIC = re.compile(r"(val|valid|validation|test)_?(loss|error|mse|mae|rmse|acc|accuracy|f1|auc|r2)")
_LARGER_IS_BETTER = re.compile(r"(acc|accuracy|f1|auc|r2)$")


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafted study.

    Attributes:
        study: The text of the study file.
        lacking: What the script must learn first, a sentence each.
        searched: The names of the parameters in the search space.
    """

    study: str
    lacking: tuple[str, ...]
    searched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Parameter:
    argument: ScriptArgument
    form: str
    remark: str
    is_meant: bool

    @property
    def words(self) -> str:
        placeholder = f"{{{self.argument.name}}}"
        return placeholder if self.argument.action else _option(self.argument, placeholder)


def draft_study(script: Script, command: str, name: str, file: str) -> Draft | None:
    """Return a study of a script, or None if it has no argument that could be searched.

    Args:
        script: What its source tells.
        command: What starts it, as ``python -m train``.
        name: Of the study.
        file: What comments call the script.
    """
    roles = _roles(script)
    taken = {argument.name for argument in roles.values()}
    others = [argument for argument in script.arguments if argument.name not in taken]
    found = [parameter for argument in others if (parameter := _parameter(argument)) is not None]
    chosen = [parameter for parameter in found if parameter.is_meant] or found[:1]
    if not chosen:
        return None
    metric = next((word for word in script.words if _METRIC.fullmatch(word)), "val_loss")
    names = {parameter.argument.name for parameter in chosen}
    given = [each for each in others if each.is_required and each.name not in names]
    words = [command, *(parameter.words for parameter in chosen)]
    words += [_option(argument, f"{{{role}}}") for role, argument in roles.items()]
    words += [_option(argument, f"{{{argument.name}}}") for argument in given]
    lacking = tuple(
        f"{file} takes no {role!r}: {task.format(metric=metric)}; add one, and {{{role}}} to the command"
        for role, task in _TASKS.items()
        if role not in roles
    )
    lines = [
        f"# Drafted from {file}: read it, change what is wrong, then `parsl-rasda validate` it.",
        f"name: {quoted_name(name)}",
        "seed: 1",
        *_given(given, file),
        "",
        "tune:",
        f"  metric: {metric}  # a name that {file} writes into its report",
        f"  mode: {'max' if _LARGER_IS_BETTER.search(metric) else 'min'}",
        "  num_samples: 16  # trials in all",
        f"  scheduler: {_scheduler(script, roles)}",
        "  search_space:",
        *_space(found, chosen),
        "  training:",
        *(f"    # {sentence}." for sentence in lacking),
        "    command: >-",
        *(f"      {line}" for line in words),
        *_batch_size(roles),
    ]
    return Draft("\n".join(lines) + "\n", lacking, tuple(parameter.argument.name for parameter in chosen))


def _roles(script: Script) -> dict[str, ScriptArgument]:
    by_name = {each.name: each for each in script.arguments if not each.action and not each.takes_many}
    found = {}
    for role, names in _ROLES.items():
        name = next((name for name in names if name in by_name), None)
        if name is not None:
            found[role] = by_name.pop(name)
    return found


def _given(arguments: list[ScriptArgument], file: str) -> Iterator[str]:
    if arguments:
        yield "with:"
        for argument in arguments:
            value = argument.choices[0] if argument.choices else f"TO BE GIVEN ({argument.type})"
            yield f"  {argument.name}: {_flow(value)}  # {file} does not start without it"


def _scheduler(script: Script, roles: dict[str, ScriptArgument]) -> str:
    default = roles["until"].default if "until" in roles else None
    epochs = default if isinstance(default, int) and not isinstance(default, bool) and default > 0 else None
    widest = 2 if script.is_distributed else 1
    return f"{{max_t: {epochs or _DEFAULT_EPOCHS}, max_workers: {widest}, growth: strict}}" + (
        "  # epochs of a trial that is never stopped; GPUs of a trial"
        if script.is_distributed
        else "  # epochs of a trial that is never stopped; one GPU a trial: no DDP was found"
    )


def _space(found: list[_Parameter], chosen: list[_Parameter]) -> Iterator[str]:
    for parameter in found:
        off = "" if parameter in chosen else "# "
        more = "" if parameter in chosen else f"; to search it, add {parameter.words} to the command"
        yield f"    {off}{parameter.argument.name}: {parameter.form}  # {parameter.remark}{more}"


def _batch_size(roles: dict[str, ScriptArgument]) -> Iterator[str]:
    size = roles["batch_size"].default if "batch_size" in roles else None
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        yield f"    batch_size: {size}  # samples of a step on each GPU"


def _parameter(argument: ScriptArgument) -> _Parameter | None:
    """Return what could be searched of an argument, or None: paths, switches and lists are left alone."""
    if argument.takes_many or not argument.name.isidentifier() or argument.name in TRAINING_PLACEHOLDERS:
        return None
    is_meant = _SEARCHED.search(argument.name.lower()) is not None
    if argument.action == "BooleanOptionalAction":
        words = [argument.flag, f"--no-{argument.flag.lstrip('-')}"]
        return _Parameter(argument, f"{{choice: {_flow(words)}}}", "on or off", is_meant)
    if argument.action:
        return None
    remark = f"default {_flow(argument.default)}" if argument.default is not None else "no default"
    if argument.choices:
        return _Parameter(argument, f"{{choice: {_flow([*argument.choices])}}}", remark, is_meant)
    form = _range(argument)
    return None if form is None else _Parameter(argument, form, f"{remark}; check the bounds", is_meant)


def _range(argument: ScriptArgument) -> str | None:
    name = argument.name.lower()
    default = _USUAL.get(name) if argument.default is None else argument.default
    if not is_number(default) or argument.type not in {"int", "float"}:
        return None
    if argument.type == "int":
        if default < 1:
            return None
        count = int(default)
        if count >= _SMALLEST_WIDTH and count & (count - 1) == 0:
            return f"{{choice: {_flow([count // 2, count, 2 * count])}}}"
        return f"{{int: {_flow([max(1, count // 2), 2 * count])}}}"
    value = float(default)
    if value > 0 and (_LOGARITHMIC.search(name) or value < 0.01 or value > 1):  # noqa: PLR2004
        return f"{{float: {_flow([_rounded(value / 10), _rounded(value * 10)])}, log: true}}"
    if 0 <= value <= 1:
        return "{float: [1.0e-6, 0.01], log: true}" if _LOGARITHMIC.search(name) else "{float: [0.0, 0.99]}"
    return None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _option(argument: ScriptArgument, value: str) -> str:
    if argument.is_positional:
        return value
    return f"{argument.flag}={value}" if argument.flag.startswith("--") else f"{argument.flag} {value}"


def quoted_name(name: str) -> str:
    """Return a study's name as YAML has it: in quotes where it could be read as a number or a date."""
    is_word = re.fullmatch(r"[^\W\d][\w.-]*", name) and yaml.safe_load(name) == name
    return name if is_word else json.dumps(name, ensure_ascii=False)


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return text if "\n" not in text else json.dumps(value)
