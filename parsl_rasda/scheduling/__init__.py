"""Who trains on, for how long, with how many replicas: rungs, ASHA, RASDA; pure.

Read `base` (the port), `rungs` and `ladder` (how much of them is in use), `batching` (what a step is on the
GPUs it gives), `rung_scheduler` (what all variants share), then the three rules: `stopping` (the default, the
paper's; with `holding`, where trials wait at a rung), `promotion`, `synchronous`; then `brackets`, several
ladders at a time, and for several metrics `objectives` and `fronts`.

>>> scheduler = build_scheduler({"kind": "rasda", "max_t": 4, "metric": "val_loss"})
>>> scheduler.add("a").until, scheduler.replicas(2)
(1, 4)
>>> scheduler.report("a", 1, 0.5).reason
'val_loss 0.5 is the first at epoch 1'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from pydantic import BaseModel

from parsl_rasda.diagnostics import checked
from parsl_rasda.plugins import SCHEDULERS, Plugin
from parsl_rasda.scheduling.base import Scheduler
from parsl_rasda.scheduling.brackets import BracketedScheduler
from parsl_rasda.scheduling.fronts import FrontPromotion, FrontStopping, FrontSynchronous
from parsl_rasda.scheduling.holding import HoldingStoppingScheduler
from parsl_rasda.scheduling.objectives import Objectives
from parsl_rasda.scheduling.promotion import PromotionScheduler
from parsl_rasda.scheduling.rung_scheduler import ExtensibleScheduler, RungScheduler
from parsl_rasda.scheduling.rungs import Rungs, build_rungs
from parsl_rasda.scheduling.stopping import StoppingScheduler
from parsl_rasda.scheduling.synchronous import SynchronousScheduler
from parsl_rasda.study.scheduler import SchedulerSpec
from parsl_rasda.study.scheduler import SchedulerVariant as Variant
from parsl_rasda.study.spec import Count
from parsl_rasda.types import Mode

__all__ = ["VARIANTS", "RungScheduler", "Rungs", "Scheduler", "SchedulerSettings", "build_scheduler"]

VARIANTS: tuple[str, ...] = get_args(Variant)


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """What a scheduler gets beside its options.

    Attributes:
        rungs: When trials are judged, and with how many replicas they train.
        mode: Whether a smaller or a larger metric is better.
        metric: Its name, for reasons.
        num_samples: How many trials the study tries, if that is known.
        variant: The rule of the built-in schedulers.
        brackets: Of the built-in schedulers: how many, and whether later trials go to the one that pays.
        objectives: By what trials are judged, if not by one metric alone.
    """

    rungs: Rungs
    mode: Mode
    metric: str
    num_samples: int | None
    variant: Variant
    brackets: tuple[int, bool] = (1, False)
    objectives: Objectives | None = None


class _Block(SchedulerSpec):
    """A study's ``scheduler`` block, with what the rest of its `tune` block says."""

    mode: Mode = Mode.MIN
    metric: str = "metric"
    num_samples: Count | None = None


def build_scheduler(block: Mapping[str, object], objectives: Objectives | None = None) -> Scheduler:
    """Return the scheduler of a study's ``scheduler`` block.

    Args:
        block: The keys of `SchedulerSpec`, and optionally ``mode``, ``metric`` and ``num_samples``.
        objectives: By what trials are judged, if not by one metric alone.

    Raises:
        InvalidFileError: If a key is unknown, a value is not allowed, or there is no such scheduler.
    """
    spec = checked(_Block, block, "scheduler")
    brackets = len(spec.grace_periods), spec.brackets == "auto"
    settings = SchedulerSettings(
        build_rungs(spec), spec.mode, spec.metric, spec.num_samples, spec.variant, brackets, objectives
    )
    scheduler: Scheduler = SCHEDULERS.build(spec.choice, settings)
    return scheduler


def _rasda(_: BaseModel, settings: SchedulerSettings) -> Scheduler:
    if settings.objectives is not None:
        return _by_fronts(settings, settings.objectives)
    number, auto = settings.brackets
    if number == 1:
        return _ladder(settings, settings.rungs)
    alone = replace(settings, num_samples=None)  # nobody knows how many trials a bracket will have
    return BracketedScheduler(settings.rungs, partial(_ladder, alone), number, auto=auto)


def _ladder(settings: SchedulerSettings, rungs: Rungs) -> ExtensibleScheduler:
    mode, metric = settings.mode, settings.metric
    match settings.variant:
        case "stopping":
            holds = rungs.min_compared > 1 or rungs.is_auto
            return (HoldingStoppingScheduler if holds else StoppingScheduler)(rungs, mode, metric)
        case "promotion":
            return PromotionScheduler(rungs, mode, metric)
        case "synchronous":
            return SynchronousScheduler(rungs, mode, metric, settings.num_samples)


def _by_fronts(settings: SchedulerSettings, objectives: Objectives) -> Scheduler:
    match settings.variant:
        case "stopping":
            return FrontStopping(settings.rungs, objectives)
        case "promotion":
            return FrontPromotion(settings.rungs, objectives)
        case "synchronous":
            return FrontSynchronous(settings.rungs, objectives, settings.num_samples)


def _asha(options: BaseModel, settings: SchedulerSettings) -> Scheduler:
    """Return `rasda` with constant replicas: the two can be compared by changing one word."""
    return _rasda(options, replace(settings, rungs=replace(settings.rungs, scaling_factor=1)))


RASDA, ASHA = Plugin(_rasda), Plugin(_asha)
