"""What a whole job has drawn: the sum over its nodes, or what Slurm has accounted; unknown stays unknown.

The agent reads the counters of its own node, where it sees an attempt to any end. On other nodes the first
rank does (`JobSpec.metered`), and one that is killed tells nothing.

Where a node has no counters of devices, the energy plug-in of Slurm may have some of the node, which it books
for each step. These count the whole node, so they are asked for only if it was the step's alone.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from parsl_rasda.agent import slurm
from parsl_rasda.energy import EnergyMeter, nodes_of, told_joules
from parsl_rasda.protocol import JobSpec

BOOKED_S = 1.0  # for Slurm's database to have heard of a step's end


class JobMeter:
    """Measures one attempt, from its making on.

    Attributes:
        order: The attempt's, which tells ranks on other nodes to measure there.
    """

    def __init__(self, order: JobSpec, launch: Mapping[str, Any]) -> None:
        """Begin to measure.

        Args:
            order: The job.
            launch: The fields of a `launch.base.LaunchCommand`, as JSON.
        """
        nodes = nodes_of(order)
        here = {_short(os.environ.get("SLURMD_NODENAME", "")), _short(platform.node())}
        self._own = [EnergyMeter(order, node) for node in nodes if _short(node) in here]
        self.order = replace(order, metered=tuple(node for node in nodes if _short(node) not in here))
        self._step = str(launch.get("step", "")) if launch.get("fills_nodes") else ""

    def joules(self) -> float | None:
        """Return what has been drawn until the launch has ended [J]; None if nobody knows."""
        found = [meter.joules() for meter in self._own]
        found += [told_joules(self.order, node) for node in self.order.metered]
        known = [joules for joules in found if joules is not None]
        if known and len(known) == len(found):
            return sum(known)
        job = os.environ.get("SLURM_JOB_ID", "")
        return _booked(job, self._step) if job and self._step and _is_booked(job) else None


def _short(host: str) -> str:
    return host.partition(".")[0]


@cache
def _is_booked(job: str) -> bool:
    """Return whether Slurm counts energy, and the nodes of a job are its alone."""
    return slurm.counts_energy() and slurm.has_whole_nodes(job)


unanswered = threading.Event()  # a database that does not answer is asked only once by each worker


def _booked(job: str, step: str) -> float | None:
    """Return what a step of that name has drawn [J] as Slurm has booked it, or None."""
    for patience_s in (BOOKED_S, 0.0):
        if unanswered.is_set():
            return None
        found = slurm.step_joules(job, step)
        if found is not None:
            return found
        threading.Event().wait(patience_s)
    unanswered.set()
    return None
