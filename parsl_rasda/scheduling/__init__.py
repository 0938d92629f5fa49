"""Who trains on, for how long, with how many replicas: rungs, ASHA, RASDA; pure.

Read `base` (the port), `rungs` (the ladder), `rung_scheduler` (what all variants share), then the three
rules: `stopping` (the default, the paper's), `promotion`, `synchronous`.

>>> scheduler = build_scheduler({"kind": "rasda", "max_t": 4, "metric": "val_loss"})
>>> scheduler.add("a").until, scheduler.replicas(2)
(1, 4)
>>> scheduler.report("a", 1, 0.5).reason
'val_loss 0.5 is the first at epoch 1'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plugins import load_plugin
from parsl_rasda.scheduling.base import Scheduler
from parsl_rasda.scheduling.promotion import PromotionScheduler
from parsl_rasda.scheduling.rungs import build_rungs
from parsl_rasda.scheduling.stopping import StoppingScheduler
from parsl_rasda.scheduling.synchronous import SynchronousScheduler
from parsl_rasda.types import Mode

ENTRY_POINTS = "parsl_rasda.schedulers"
KINDS = ("rasda", "asha")
VARIANTS = ("stopping", "promotion", "synchronous")
DEFAULTS: Mapping[str, object] = {
    "kind": "rasda",
    "variant": "stopping",
    "mode": "min",
    "metric": "metric",
    "grace_period": 1,
    "max_t": 8,
    "reduction_factor": 2,
    "scaling_factor": 2,
    "num_workers": 1,
    "max_workers": None,
    "num_samples": None,
    "growth": None,  # how widths follow replicas belongs to placement; accepted here, never read
}


def build_scheduler(settings: Mapping[str, object]) -> Scheduler:
    """Return the scheduler of a study's ``scheduler`` block; `DEFAULTS` lists keys and defaults.

    ``asha`` is ``rasda`` with constant replicas: it ignores ``scaling_factor``, so that the two can
    be compared by changing one word. Another ``kind`` is looked up among the installed entry points
    of `ENTRY_POINTS`; such a plug-in is called with the settings as they are.

    Raises:
        InvalidSettingError: If a key is unknown or a value is not allowed.
    """
    kind = settings.get("kind", DEFAULTS["kind"])
    if kind not in KINDS:
        plugin = load_plugin(ENTRY_POINTS, kind, key="scheduler.kind", built_in=KINDS)
        return cast("Callable[[Mapping[str, object]], Scheduler]", plugin)(settings)
    for key in settings:
        if key not in DEFAULTS:
            raise InvalidSettingError(
                f"scheduler.{key}", settings[key], f"no such key; {', '.join(DEFAULTS)}"
            )
    values: dict[str, Any] = {**DEFAULTS, **settings}  # Any: checked one by one below
    rungs = build_rungs(
        grace_period=values["grace_period"],
        max_t=values["max_t"],
        reduction_factor=values["reduction_factor"],
        num_workers=values["num_workers"],
        scaling_factor=values["scaling_factor"] if kind == "rasda" else 1,
        max_workers=values["max_workers"],
    )
    mode = Mode(_one_of("mode", values["mode"], tuple(Mode)))
    metric, num_samples = str(values["metric"]), values["num_samples"]
    if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
        raise InvalidSettingError(
            "scheduler.num_samples", num_samples, "an integer of at least 1, or nothing"
        )
    match _one_of("variant", values["variant"], VARIANTS):
        case "stopping":
            return StoppingScheduler(rungs, mode, metric)
        case "promotion":
            return PromotionScheduler(rungs, mode, metric)
        case _:
            return SynchronousScheduler(rungs, mode, metric, num_samples)


def _one_of(key: str, found: object, allowed: tuple[str, ...]) -> str:
    if found not in allowed:
        raise InvalidSettingError(f"scheduler.{key}", found, ", ".join(allowed))
    return str(found)
