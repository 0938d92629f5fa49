"""Which policies a study is compared under, and the machine of each."""

from __future__ import annotations

from collections.abc import Mapping

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.plugins import kind_of
from parsl_rasda.simulation.hyperband import HyperbandScheduler
from parsl_rasda.study import SchedulerSpec, TuneSpec
from parsl_rasda.study.epochs import UpTo
from parsl_rasda.types import Mode

ASHA, ELASTIC, STRICT, HYPERBAND = "ASHA", "RASDA elastic", "RASDA strict", "Hyperband"
ONE_BRACKET = "RASDA, one bracket"
_ASHA = {"kind": "asha", "growth": "none"}
_PLAIN: Mapping[str, str | int] = {"min_compared": 1, "early": "none"}  # as where all of a rung wait
_OTHERS_UP_TO = 1_000  # trials: a study of more is compared under three policies, not five


def as_asha(tune: TuneSpec) -> TuneSpec:
    """Return a stage that trains the same trials under ASHA, at a world size that never changes."""
    return tune.model_copy(update={"scheduler": _changed(tune.scheduler, _ASHA)})


def policies_of(tune: TuneSpec) -> tuple[str, dict[str, TuneSpec]]:
    """Return the name of the declared policy, and what is compared by name.

    Synchronous rungs (or, if the study declares these, asynchronous ones), one bracket (if it declares more)
    and Hyperband train other epochs than the rest, and are left out of very large studies.
    """
    method = tune.scheduler
    variants: dict[str, Mapping[str, str | int]] = {
        ELASTIC: {"kind": "rasda", "growth": "elastic"},
        STRICT: {"kind": "rasda", "growth": "strict"},
        ASHA: _ASHA,
    }
    if tune.num_samples <= _OTHERS_UP_TO:
        other = "stopping" if method.variant == "synchronous" else "synchronous"
        plain = {**_PLAIN, "max_t": int(method.max_t)}
        at_once = {} if other == "stopping" else plain
        variants[f"RASDA {other}"] = {**variants[ELASTIC], **at_once, "variant": other}
        variants[HYPERBAND] = {**_ASHA, **plain, "brackets": 1}
        if method.brackets != 1:
            variants[ONE_BRACKET] = {**variants[ELASTIC], "brackets": 1}
    if isinstance(method.max_t, UpTo):
        variants[f"RASDA to {method.max_t:d}"] = {**variants[ELASTIC], "max_t": int(method.max_t)}
    declared = ASHA if method.kind == "asha" else f"{method.kind.upper()} {kind_of(method.growth)}"
    if declared not in variants:
        variants = {declared: {}, **variants}
    # Virtual metrics are smaller where a trial is better.
    return declared, {
        name: tune.model_copy(update={"mode": Mode.MIN, "scheduler": _changed(method, changes)})
        for name, changes in variants.items()
    }


def machine_of(name: str, tune: TuneSpec) -> Machine:
    """Return the machine of a policy that has not begun.

    Args:
        name: Of the policy.
        tune: The stage under it, as `policies_of` returns it.
    """
    machine = build_machine(tune)
    if name != HYPERBAND:
        return machine
    return Machine(machine.settings, HyperbandScheduler(tune.scheduler, tune.num_samples), machine.growth)


def _changed(method: SchedulerSpec, changes: Mapping[str, str | int]) -> SchedulerSpec:
    """Return a method with another scheduler; options are those of the one that was declared."""
    if not changes:
        return method
    return SchedulerSpec.model_validate({**method.model_dump(exclude={*method.options}), **changes})
