"""How long a search that runs still takes: a copy of its machine, rehearsed from where it stands.

Times are those that the machine has measured by now. Curves go on flat, and a trial that is still to come
behaves like one that is known: nobody can tell who passes the next rungs.
"""

from __future__ import annotations

import copy
import random

from parsl_rasda.errors import RasdaError
from parsl_rasda.orchestration.machine import Machine
from parsl_rasda.orchestration.run_names import number_of
from parsl_rasda.orchestration.summary import time_left
from parsl_rasda.orchestration.trial_record import LiveJob, TrialRecord
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.simulation.costs import Costs
from parsl_rasda.simulation.rehearsal import Rehearsal, VirtualSite
from parsl_rasda.types import SiteName, StudyState, TrialId

MOST_TRIALS = 300  # of which a copy is rehearsed; above, the mean of what has ended has to do


def remaining_s(machine: Machine, usage: Usage, now: float) -> float | None:
    """Return about how long a search still takes [s], or None if that cannot be told.

    Args:
        machine: Where it stands; it is not changed.
        usage: What it has used.
        now: Present time [s].
    """
    if machine.state is not StudyState.RUNNING or not machine.pilots.up:
        return None
    if machine.num_samples > MOST_TRIALS:
        return time_left(machine, usage)
    twin = copy.deepcopy(machine)
    costs = _costs_of(twin)

    def epoch_ends_at(trial: TrialRecord, job: LiveJob) -> float:
        began = usage.boundaries.get(job.id, job.since + costs.restart_s)
        return began + costs.epoch_s(number_of(trial.id), job.placement.world_size)

    try:
        ended_at = Rehearsal(twin, _sites_of(twin), costs).go_on(now, epoch_ends_at)
    except RasdaError:
        return time_left(machine, usage)  # an estimate must not end a run
    if twin.state not in {StudyState.DONE, StudyState.FAILED}:
        return time_left(machine, usage)  # it waits for what nobody can foresee
    return float(round(ended_at - now))


def _sites_of(machine: Machine) -> dict[SiteName, VirtualSite]:
    """Return the shape of the pilots of each site that are up."""
    found: dict[SiteName, VirtualSite] = {}
    for pilot in machine.pilots.up.values():
        gpus = max(len(node.gpus) for node in pilot.nodes)
        found[pilot.site] = VirtualSite(len(pilot.nodes), gpus, interactive=pilot.interactive)
    return found


def _costs_of(machine: Machine) -> Costs:
    """Return what training costs, as the machine has learnt it."""
    times, trials = machine.cluster_state.times, list(machine.trials.values())
    known = [t for t in trials if t.history]
    site = next(p.site for p in machine.pilots.up.values())

    def like(number: int) -> TrialRecord | None:
        if number < len(trials) and (trials[number].history or not known):
            return trials[number]
        return known[number % len(known)] if known else None

    def metric(number: int, epoch: int) -> float:
        found = like(number)
        before = [e for e in found.history if e <= epoch] if found is not None else []
        if found is None or not before:
            return random.Random(number).random()  # noqa: S311 - no secret
        return found.history[max(before)]

    def epoch_s(number: int, world_size: int) -> float:
        found = like(number)
        trial = TrialId(f"{number:04d}") if found is None else found.id
        return times.epoch_s(trial, world_size, (found and found.site) or site)

    start_s = times.launch_s(site)
    samples = next((t.samples for t in trials if t.samples), None)
    return Costs(
        epoch_s,
        metric,
        launch_s=lambda _: start_s,
        restart_s=start_s,
        leave_s=times.release_s(site) / 2,
        samples=samples,
    )
