"""What fixed replicas ask of a training: batch sizes that they can share evenly, and gradients to measure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from parsl_rasda.diagnostics import Plain
from parsl_rasda.errors import Diagnostic, Loc


@dataclass(frozen=True, slots=True)
class FixedReplicas:
    """Replicas that share each step from the first to the last.

    Attributes:
        rule: The `scheduler.batch` that fixes them.
        start: How many `batch_size` make their first step; later ones are multiples of it.
    """

    count: int
    rule: str
    start: int

    @property
    def unit(self) -> int:
        """What a batch size must be a multiple of."""
        return self.count // math.gcd(self.count, self.start)

    def cannot_share(self, what: str) -> str:
        """Return the words for a batch size, or a range of them, that they cannot share."""
        return f"{what}, which {self.count} replicas cannot share (scheduler.batch: {self.rule})"


def unmeasured(training: Plain, replicas: FixedReplicas) -> Iterator[Diagnostic]:
    """Yield what keeps `batch: measured` from the gradients of single replicas.

    Args:
        training: The `training` block.
        replicas: That share each step.
    """
    if replicas.rule != "measured" or replicas.count == 1:
        return
    allowed = "doubling or constant: no one sees the gradients of single replicas"
    is_power_of_two = replicas.count & (replicas.count - 1) == 0
    for is_hidden, why in (
        (training.get("command") is not None, "training.command"),
        (training.get("sharding") == "fsdp", "sharding: fsdp"),
        (training.get("reduce") == "ddp", "reduce: ddp"),
        (training.get("reduce", "auto") == "auto" and not is_power_of_two, f"{replicas.count} replicas"),
    ):
        if is_hidden:
            yield Diagnostic(("scheduler", "batch"), f"measured, with {why}", allowed)


def indivisible_sizes(
    setting: object, space: Plain, listed: object, replicas: FixedReplicas
) -> Iterator[Diagnostic]:
    """Yield the batch sizes that replicas cannot share evenly.

    Args:
        setting: `training.batch_size`: a number, or the name of a parameter.
        space: The search space.
        listed: The configurations of a list that is searched, or None.
        replicas: That share each step.
    """
    if not isinstance(setting, str):
        yield from _if_indivisible(("training", "batch_size"), setting, replicas)
        return
    yield from _of_parameter(("search_space", setting), space.get(setting), replicas)
    for number, config in enumerate(listed if isinstance(listed, list | tuple) else ()):
        if isinstance(config, Mapping):
            yield from _if_indivisible(
                ("searcher", "configs", number, setting), config.get(setting), replicas
            )


def _of_parameter(loc: Loc, parameter: object, replicas: FixedReplicas) -> Iterator[Diagnostic]:
    if not isinstance(parameter, Mapping):
        yield from _if_indivisible(loc, parameter, replicas)
    elif "constant" in parameter:
        yield from _if_indivisible((*loc, "constant"), parameter["constant"], replicas)
    elif isinstance(values := parameter.get("choice"), list | tuple):
        for i, value in enumerate(values):
            yield from _if_indivisible((*loc, "choice", i), value, replicas)
    elif isinstance(bounds := parameter.get("int"), list | tuple) and bounds:
        step = 0 if bounds[0] == bounds[-1] else parameter.get("step", 1)
        unit = replicas.unit
        if all(isinstance(n, int) for n in (bounds[0], step)) and (bounds[0] % unit or step % unit):
            found = replicas.cannot_share(f"{list(bounds)} in steps of {step}")
            yield Diagnostic((*loc, "int"), found, f"multiples of {unit} as low and as step")


def _if_indivisible(loc: Loc, size: object, replicas: FixedReplicas) -> Iterator[Diagnostic]:
    unit = replicas.unit
    if isinstance(size, int) and size >= 1 and size % unit:
        below = size - size % unit
        allowed = f"{below} or {below + unit}" if below else str(unit)
        yield Diagnostic(loc, replicas.cannot_share(str(size)), allowed)


def sizes_in(setting: object, space: Plain) -> list[int]:
    """Return the batch sizes that trials may have, ascending: of a range, its bounds.

    Args:
        setting: `training.batch_size`: a number, or the name of a parameter.
        space: The search space.
    """
    parameter = space.get(setting) if isinstance(setting, str) else setting
    if isinstance(parameter, Mapping):
        parameter = next((parameter[k] for k in ("constant", "choice", "int") if k in parameter), None)
    found = parameter if isinstance(parameter, list | tuple) else [parameter]
    return sorted({size for size in found if isinstance(size, int)})
