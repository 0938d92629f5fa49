"""What ASHA would have taken for the trials of a finished run, on the slots that it had.

The same machine is rehearsed with `kind: asha, growth: none` and the times that the run's journal measured,
as `plan --from` does it, and with a confirmation where the run had one. A rehearsal has no faults and loses
no pilot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.confirmation import Confirmation
from parsl_rasda.orchestration.driver import Observer
from parsl_rasda.orchestration.events import Event, PilotEnded, PilotStarted, StudyStarted
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.plugins import kind_of
from parsl_rasda.simulation.measured import measured_costs
from parsl_rasda.simulation.policies import as_asha
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.study import TuneSpec
from parsl_rasda.study.parameters import with_prior
from parsl_rasda.study.tuning import StopSpec
from parsl_rasda.types import Mode, PilotId, SiteName, StudyState, TrialState

_DESIGNS = frozenset({"random", "grid", "sobol", "list"})  # searchers that learn nothing from results


@dataclass(frozen=True, slots=True)
class RehearsedAsha:
    """ASHA's schedule of a run's trials.

    Attributes:
        machine: In its final state; its metrics are smaller where a trial is better.
        makespan_s: Of the whole search, with its confirmation [s].
        has_same_best: Its best trial is that of the run, to the last bit, by construction.
        unknown_epochs: Those beyond where the run stopped their trials: no metric was measured there.
    """

    machine: Machine
    makespan_s: float
    has_same_best: bool
    unknown_epochs: int


def rehearse_asha(history: ReplayedSearch, observers: Sequence[Observer] = ()) -> RehearsedAsha | None:
    """Return how ASHA would have trained the trials of a search.

    Args:
        history: The search.
        observers: Follow the rehearsal.

    Returns:
        None if the search has not ended well or measured no epoch, was ended by its budget, has confirmed
        other trials or seeds than it names now, or is no RASDA: nothing grows, or another scheduler decides.
    """
    method = history.tune.scheduler
    is_rasda = method.kind == "rasda" and kind_of(method.growth) != "none"
    if not is_rasda or history.machine.state is not StudyState.DONE or not history.usage.epochs:
        return None
    confirmation = history.machine.confirmation
    if history.machine.budget.reason or history.machine.is_changed or not _is_whole(confirmation):
        return None  # it would have stood elsewhere then
    held = _Held()
    for record in history.records:
        held.add(record.event)
    machine = build_machine(as_asha(_with_smaller_better(history.tune)))
    costs = measured_costs(history, seed=0)
    confirm = confirmation.wanted if confirmation.runs else None
    usage = Rehearsal(machine, held.sites, costs, observers).run(_num_samples(history), confirm=confirm)
    if machine.state is not StudyState.DONE:
        return None
    beyond = (t.epoch - costs.known_until(int(t.id)) for t in machine.trials.values())
    unknown = sum(int(epochs) for epochs in beyond if epochs > 0)
    return RehearsedAsha(machine, usage.makespan_s(), _has_same_best(history, held), unknown)


def _is_whole(confirmation: Confirmation) -> bool:
    """Whether the runs of a confirmation are those that a rehearsal would have; also if there are none."""
    wanted, runs = confirmation.wanted, confirmation.runs
    count = len(confirmation.candidates) * wanted.seeds if wanted else 0
    return not runs or (confirmation.is_settled and len(runs) == count)


def _with_smaller_better(tune: TuneSpec) -> TuneSpec:
    """Return a stage whose metric is smaller where a trial is better, as in any rehearsal."""
    stop = tune.stop_when
    if stop.metric_above is not None:
        stop = StopSpec(no_improvement=stop.no_improvement, metric_below=-stop.metric_above)
    return tune.model_copy(update={"mode": Mode.MIN, "stop_when": stop})


def _num_samples(history: ReplayedSearch) -> int:
    """Return how many trials ASHA would have had: more than have been, if the search had found enough."""
    machine = history.machine
    return machine.num_samples if machine.stop_reason else len(machine.trials)


def _has_same_best(history: ReplayedSearch, held: _Held) -> bool:
    """Whether ASHA would have made the same decisions from the same bits."""
    tune, method = history.tune, history.tune.scheduler
    decides_alike = method.variant == "synchronous" and held.budgets == 1
    is_design = tune.searcher.kind in _DESIGNS and not with_prior(tune.search_space)
    proposes_alike = is_design and tune.stop_when == StopSpec()
    trials = [*history.machine.trials.values(), *history.machine.confirmation.runs.values()]
    is_undisturbed = len(held.sites) == 1 and not any(map(_failed_by_chance, trials))
    is_one_code = len({code for t in trials for code in t.codes}) <= 1
    return decides_alike and proposes_alike and _trains_alike(tune) and is_undisturbed and is_one_code


def _failed_by_chance(trial: TrialRecord) -> bool:
    """Whether a trial has failed, and not because its metric diverged."""
    diverged = trial.last is not None and not math.isfinite(trial.last[1])
    return trial.state is TrialState.FAILED and not diverged


def _trains_alike(tune: TuneSpec) -> bool:
    """Whether the weights of a trial do not depend on its world size."""
    replicas, training = tune.scheduler.most_workers, tune.training
    is_exact = training.reduce == "exact" or (training.reduce == "auto" and replicas & (replicas - 1) == 0)
    is_ours = training.python is not None and training.sharding == "none"
    return tune.scheduler.batch == "constant" and is_exact and is_ours


@dataclass(slots=True)
class _Held:
    """The pilots of a run.

    Attributes:
        sites: The most that each site gave at once.
        budgets: Different numbers of trials that were wanted, one after the other.
    """

    sites: dict[SiteName, VirtualSite] = field(default_factory=dict)
    _wanted: set[int] = field(default_factory=set)
    _up: dict[PilotId, SiteName] = field(default_factory=dict)

    @property
    def budgets(self) -> int:
        return len(self._wanted)

    def add(self, event: Event) -> None:
        match event:
            case StudyStarted():
                self._up.clear()
                self._wanted.add(event.num_samples)
            case PilotStarted():
                self._up[event.pilot] = event.site
                self._see(event)
            case PilotEnded():
                self._up.pop(event.pilot, None)
            case _:
                pass

    def _see(self, event: PilotStarted) -> None:
        known = self.sites.get(event.site, VirtualSite(0, 0, 0, names=()))
        nodes = tuple(n.node for n in event.nodes)
        self.sites[event.site] = replace(
            known,
            nodes=max(known.nodes, len(nodes)),
            gpus_per_node=max([known.gpus_per_node, *(len(n.gpus) for n in event.nodes)]),
            pilots=max(known.pilots, sum(site == event.site for site in self._up.values())),
            interactive=event.interactive,
            names=(*known.names, *(n for n in nodes if n not in known.names)),
        )
