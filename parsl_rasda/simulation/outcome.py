"""What a forecast says: plain records, which `plan --json` prints as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parsl_rasda.simulation.budgets import BudgetForecast


@dataclass(frozen=True, slots=True)
class PolicyForecast:
    """The forecast of one policy, medians over the seeds; None if a trial would never get its GPUs.

    Attributes:
        is_declared: The study asks for this one.
        needed_gpus: GPUs without which a trial of this policy cannot start.
        gpu_hours: Held, busy or not.
        queue_s: Until its first pilot came [s].
        speedup: Over ASHA, from the first pilot on.
        unknown_epochs: Those beyond where the measured run stopped their trials.
        unknown_trials: How many trials have such epochs.
        ranges: The least and the most of `makespan_s`, `gpu_hours`, `node_hours` and `speedup`.
    """

    name: str
    is_declared: bool
    needed_gpus: int
    makespan_s: float | None = None
    gpu_hours: float | None = None
    node_hours: float | None = None
    gpu_busy_fraction: float | None = None
    restarts: int | None = None
    epochs: int | None = None
    queue_s: float | None = None
    speedup: float | None = None
    unknown_epochs: int = 0
    unknown_trials: int = 0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RungForecast:
    """One rung: ``trials`` is how many reach it under the declared policy.

    Attributes:
        workers: GPUs that the method gives on the way to it.
        batches: How many `batch_size` made a step on the way to it, each number once.
        meant: As many of them as one in `reduction_factor` is; more may go on where each is judged against
            those before it only. None where that is not so.
    """

    rung: int
    epochs: int
    replicas: int
    workers: int
    trials: int
    batches: tuple[int, ...] = ()
    meant: int | None = None


@dataclass(frozen=True, slots=True)
class SizeForecast:
    """The policies on pilots of another size.

    Attributes:
        nodes: Of each pilot.
        gpus: Of all pilots.
    """

    nodes: int
    gpus: int
    policies: tuple[PolicyForecast, ...]


@dataclass(frozen=True, slots=True)
class PilotForecast:
    """The pilots of a site that would do.

    Attributes:
        pilots: As many as the site declares, at a time.
        enough: With so many the study takes at most 5 % longer.
        walltime_s: So long a pilot lives to see the end of the study, with a fifth to spare [s].
        declared_s: Walltime that the site file declares [s]; None if it declares none.
        queue_s: How long one waits [s].
        in_turn: Pilots that follow each other in one place, because one ends before the study does.
    """

    site: str
    nodes: int
    pilots: int
    enough: int
    walltime_s: float
    declared_s: float | None
    queue_s: float
    in_turn: int


@dataclass(frozen=True, slots=True)
class ConfirmForecast:
    """What training the best trials again adds to the declared policy.

    Attributes:
        runs: How many trainings it is.
    """

    runs: int
    epochs: int
    makespan_s: float
    gpu_hours: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one `tune` stage will take.

    Attributes:
        sites: Where its trials run.
        epoch_s: Median epoch of a trial on `num_workers` GPUs [s].
        is_measured: Costs come from a run, not from `tune.estimates`.
        seeds: How many draws the figures are medians of.
        sizes: The same on pilots of other sizes, if they were asked for.
        pilots: What pilots would do.
        budget: What it would come to under its budget, if it has one.
        confirm: What training the best again adds, if the study wants that.
        advice: Sentences for the user, if there is something to say.
        guessed: Which costs are neither measured nor declared, in words.
    """

    stage: str
    trials: int
    sites: tuple[str, ...]
    gpus: int
    nodes: int
    epoch_s: float
    restart_s: float
    is_measured: bool
    rungs: tuple[RungForecast, ...]
    policies: tuple[PolicyForecast, ...]
    seeds: int = 1
    sizes: tuple[SizeForecast, ...] = ()
    pilots: tuple[PilotForecast, ...] = ()
    budget: BudgetForecast | None = None
    advice: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    confirm: ConfirmForecast | None = None

    @property
    def declared(self) -> PolicyForecast:
        """What the study asks for."""
        return next(p for p in self.policies if p.is_declared)
