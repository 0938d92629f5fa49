"""Which batch sizes a fixed number of replicas can share: all take equally many samples of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from parsl_rasda.diagnostics import Plain
from parsl_rasda.errors import Diagnostic, Loc


def indivisible_sizes(setting: object, space: Plain, listed: object, replicas: int) -> Iterator[Diagnostic]:
    """Yield the batch sizes that replicas cannot share evenly.

    Args:
        setting: `training.batch_size`: a number, or the name of a parameter.
        space: The search space.
        listed: The configurations of a list that is searched, or None.
        replicas: How many share each batch.
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


def _of_parameter(loc: Loc, parameter: object, replicas: int) -> Iterator[Diagnostic]:
    if not isinstance(parameter, Mapping):
        yield from _if_indivisible(loc, parameter, replicas)
    elif "constant" in parameter:
        yield from _if_indivisible((*loc, "constant"), parameter["constant"], replicas)
    elif isinstance(values := parameter.get("choice"), list | tuple):
        for i, value in enumerate(values):
            yield from _if_indivisible((*loc, "choice", i), value, replicas)
    elif isinstance(bounds := parameter.get("int"), list | tuple) and bounds:
        step = 0 if bounds[0] == bounds[-1] else parameter.get("step", 1)
        if all(isinstance(n, int) for n in (bounds[0], step)) and (bounds[0] % replicas or step % replicas):
            found = f"{list(bounds)} in steps of {step}, which {replicas} replicas cannot share ({_WHY})"
            yield Diagnostic((*loc, "int"), found, f"multiples of {replicas} as low and as step")


_WHY = "scheduler.batch: constant"


def _if_indivisible(loc: Loc, size: object, replicas: int) -> Iterator[Diagnostic]:
    if isinstance(size, int) and size >= 1 and size % replicas:
        below = size - size % replicas
        allowed = f"{below} or {below + replicas}" if below else str(replicas)
        yield Diagnostic(loc, f"{size}, which {replicas} replicas cannot share ({_WHY})", allowed)


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
