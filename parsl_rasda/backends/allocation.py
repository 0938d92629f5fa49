"""What a pilot turned out to be: its nodes and slots, its end, and whether it can be used at all."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from parsl_rasda.agent.node_probe import gpu_count, is_in_allocation, node_names
from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.launch.base import LaunchCommand, Launcher, LaunchSettings, rank_environment
from parsl_rasda.launch.container import CONTAINED_VARIABLE, exec_words, step_options
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.pilot_counts import walltime_s
from parsl_rasda.study.site_base import SiteBase
from parsl_rasda.types import NodeName, NodeSlots, Placement

if TYPE_CHECKING:
    from parsl_rasda.study import SiteSpec

_TWO_KINDS = 2  # of nodes, by their GPUs
_RUN = 3  # how far an attempt's directory, trials/0001/attempt-1, is below its run's
_ONE_STEP = ("srun", "--nodes=1", "--ntasks=1", "--nodelist={node}", "--overlap", "--mem=0", "--input=none")
COUNTED = frozenset({"cuda", "rocm"})  # what a node shows are slots
_EARLY_S = 30.0  # batch systems look at walltimes twice a minute, and kill before the last second

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PilotAllocation:
    """A pilot that can be used.

    Attributes:
        deadline: Unix time [s] at which it ends, or None.
        python: The interpreter of ranks there.
        rank_client: The program that has a rank forked (`runtime.process.forkserver`).
        is_one_machine: All its nodes are the machine that the pilot is on; their names mean nothing.
        warning: A message on what it has less of than declared, or nothing.
        is_own: It is the allocation that the controller is in.
        agent: Interpreter and rank client of the pilot itself, where those of ranks are in a container.
        has_gres: Its GPUs are a resource that the batch system hands out, for which a step has to ask.
    """

    nodes: tuple[NodeSlots, ...]
    deadline: float | None
    python: str
    rank_client: str
    is_one_machine: bool = False
    warning: str = ""
    is_own: bool = False
    agent: tuple[str, str] | None = None
    has_gres: bool = True

    @property
    def gpus_per_node(self) -> int:
        """Slots of a whole node."""
        return max(len(node.gpus) for node in self.nodes)

    def _gpus_of_step(self, placement: Placement) -> int:
        """Return how many GPUs a step must ask of each node of a placement; 0 for none."""
        asked = {node.node for node in placement.nodes}
        counts = [len(node.gpus) for node in self.nodes if node.node in asked]
        return min(counts, default=self.gpus_per_node) if self.has_gres else 0

    def leave_by(self, margin_s: float, now: float) -> float | None:
        """Return when jobs must have left [Unix time, s]: a margin before the end, or None.

        An allocation too short for the margin gives half of itself to work.
        """
        if self.deadline is None:
            return None
        return self.deadline - min(margin_s, max(0.0, self.deadline - now) / 2)

    def is_over(self, now: float) -> bool:
        """Whether its time is up at ``now`` [Unix time, s]."""
        return self.deadline is not None and now >= self.deadline - _EARLY_S

    def launch(
        self, order: JobSpec, placement: Placement, site: SiteBase, launcher: Launcher
    ) -> LaunchCommand:
        """Return what starts the ranks of an order on its slots.

        Args:
            order: With the directory that it has there.
            placement: Where.
            site: What was declared.
            launcher: The site's.
        """
        container = site.container
        folders = _seen_inside(order, site)
        settings = LaunchSettings(
            options=(*site.launcher_options, *(step_options(container, folders) if container else ())),
            threads_per_rank=site.threads_per_rank,
            accelerator=site.accelerator,
            gpus_per_node=self._gpus_of_step(placement),
            nodes_differ=len({len(node.gpus) for node in self.nodes}) > 1,
            local=self.is_one_machine,
            environment={**site.rank_environment, **({CONTAINED_VARIABLE: "1"} if container else {})},
            directory=order.directory,
            is_contained=container is not None,
        )
        inside = exec_words(container, site.accelerator, folders, site.rank_environment) if container else ()
        program = self.rank_program(order, warm_start=site.warm_start)
        command = launcher.command(placement, (*inside, *program), settings)
        whole = {node.node: len(node.gpus) for node in self.nodes}
        fills = all(len(node.gpus) == whole.get(node.node) for node in placement.nodes)
        command = replace(command, fills_nodes=fills)
        return self.with_servers(command, program, placement, inside)

    def rank_program(self, order: JobSpec, *, warm_start: bool) -> tuple[str, ...]:
        """Return what a launcher starts for each rank of an order.

        A rank that only starts a script needs nothing that a fork would give it.
        """
        path = str(Path(order.directory) / "order.json")
        if warm_start and order.python is not None:
            return (self.python, "-S", "-E", "-s", self.rank_client, path)
        return (self.python, "-Pm", "parsl_rasda.runtime", path)

    def with_servers(
        self,
        launch: LaunchCommand,
        program: tuple[str, ...],
        placement: Placement,
        inside: tuple[str, ...] = (),
    ) -> LaunchCommand:
        """Return a launch that first sees to fork servers on its nodes, where ranks cannot start them.

        Args:
            launch: The command that starts the ranks.
            program: What each rank is.
            placement: Where.
            inside: Words that go before a program to run it in the container of the ranks.
        """
        if not launch.lasting or self.rank_client not in program:
            return launch
        nodes = [node.node for node in placement.nodes]
        ensure = (*_keeper(*(self.agent or (self.python, self.rank_client))), "ensure", *nodes, "--")
        keep = (*launch.lasting, *inside, *_keeper(self.python, self.rank_client), "keep")
        return replace(launch, before=(*ensure, *keep))


def read_allocation(
    site: SiteBase, found: Mapping[str, Any], *, now: float, is_local: bool, walltime: str | None
) -> PilotAllocation | str:
    """Return what a site's pilot offers, or why it cannot be used.

    Args:
        site: What was asked for.
        found: What `node_probe.describe_allocation` saw there.
        now: Unix time [s].
        is_local: Whether the pilot is this machine, or the allocation that this process is in.
        walltime: Of the pilot, as its provider asked for it; counts where the batch system does not tell.
    """
    ours, theirs = version("parsl_rasda"), found["versions"]["parsl_rasda"]
    if ours != theirs:
        return f"parsl_rasda is {theirs or 'not installed'} on the pilot and {ours} here; install the same"
    inside = inside_of(site, found)
    if isinstance(inside, str):
        return inside
    names = found["nodes"]
    gpus = _usable_gpus(site, found["gpus"])
    if not gpus:
        return f"no {site.accelerator} device was found on {names[0]}; set gpus_per_node or accelerator"
    if (
        is_local
        and len(names) == 1 < site.nodes_per_pilot
        and not site.takes_all_nodes
        and site.accelerator in DEVICE_MASKS
    ):
        return f"{names[0]} is one machine, whose GPUs would count once for each node; set nodes: 1"
    deadline = found["deadline"]
    if deadline is None and walltime is not None:
        deadline = now - found["age_s"] + walltime_s(walltime)
    if deadline is not None and deadline <= now:
        return "its allocation has come to its end already"
    used = _usable_nodes(site, names, is_local)
    nodes = tuple(
        NodeSlots(NodeName(n), tuple(range(k))) for n in used if (k := gpus_of(site, found, n, gpus))
    )
    if not nodes:
        return f"none of the nodes {', '.join(used)} has a GPU; ask the provider for them"
    is_one_machine = is_local and (len(names) == 1 or len(nodes) == 1)
    python = site.python or inside["executable"]
    least = min(nodes, key=lambda node: len(node.gpus))
    warning = _shortfall(site, names, least, len(nodes))
    if warning:
        logger.warning("pilot falls short site=%s: %s", site.name, warning)
    is_own = is_local and found["deadline"] is not None
    agent = (found["executable"], found["rank_client"]) if site.container else None
    client, has_gres = inside["rank_client"], hands_out_gpus(found)
    return PilotAllocation(nodes, deadline, python, client, is_one_machine, warning, is_own, agent, has_gres)


def ranks_here(site: SiteBase) -> dict[str, str] | None:
    """Return the variables of forked ranks, if their server may start while a local pilot does.

    They depend on nothing that only the pilot knows. Not inside an allocation: there ranks may be job
    steps. Nor if a variable may be secret, for the pilot's script is a file.
    """
    is_plain = site.container is None and site.python is None
    if not (site.is_local and site.warm_start and is_plain) or is_in_allocation(os.environ):
        return None
    if any(place[0] == "environment" for place in site.written):
        return None
    return rank_environment(
        LaunchSettings(
            threads_per_rank=site.threads_per_rank,
            accelerator=site.accelerator,
            environment=site.rank_environment,
        )
    )


def probe_command(site: SiteBase) -> tuple[str, ...]:
    """Return the command that looks into a site's container on a pilot's ``{node}``; empty without one."""
    container = site.container
    if container is None:
        return ()
    step = (*_ONE_STEP, *site.launcher_options, *step_options(container, ())) if container.is_of_srun else ()
    words = exec_words(container, site.accelerator, (), site.rank_environment)
    return (*step, *words, container.python, "-Pm", "parsl_rasda.agent.node_probe", site.accelerator)


def inside_of(site: SiteBase, found: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """Return what ranks of a site have where they run, or why its container cannot be used.

    Args:
        site: What was asked for.
        found: What `node_probe.describe_allocation` saw there.
    """
    if site.container is None:
        return found
    runtime, inside = site.container.runtime, dict(found["inside"])
    if "error" in inside:
        return f"the container of {runtime} does not start: {inside['error']}"
    ours, theirs = version("parsl_rasda"), inside["versions"]["parsl_rasda"]
    if ours != theirs:
        return (
            f"parsl_rasda is {theirs or 'not installed'} in the container and {ours} here; install the same "
            "in the image"
        )
    if site.accelerator in COUNTED and found["gpus"] and not inside["gpus"]:
        return (
            f"the container of {runtime} sees no {site.accelerator} device of the {found['gpus']} on "
            f"{found['nodes'][0]}; see container.options"
        )
    return inside


def _keeper(python: str, client: str) -> tuple[str, ...]:
    return (python, "-S", "-E", "-s", str(PurePosixPath(client).with_name("keeper.py")))


def _seen_inside(order: JobSpec, site: SiteBase) -> tuple[str, ...]:
    """Return the folders that ranks of an order need: its run's or the checkpoints', and the study's code."""
    attempt = PurePosixPath(order.directory)
    is_of_run = len(attempt.parents) > _RUN and attempt.parents[1].name.startswith("trials")
    run = str(attempt.parents[2]) if is_of_run else order.directory
    return (run, *order.search_path, *([site.work_dir] if site.work_dir else ()))


def hands_out_gpus(found: Mapping[str, Any]) -> bool:
    """Return whether the batch system hands out GPUs: unless it says that no node has been given any."""
    granted = found.get("granted")
    return granted is None or any(granted.values())


def gpus_of(site: SiteBase, found: Mapping[str, Any], node: str, usual: int) -> int:
    """Return the slots of one node: as many as usual, unless the nodes of the allocation differ."""
    granted = found.get("granted") or {}
    if site.accelerator not in COUNTED or len({*granted.values()}) < _TWO_KINDS:
        return usual
    there = granted.get(node, granted.get(node.partition(".")[0], usual))
    return min(there, site.gpus_per_node) if isinstance(site.gpus_per_node, int) else int(there)


def in_this_allocation(site: SiteSpec) -> SiteSpec:
    """Return a site that knows how many nodes `nodes: auto` stands for; any other one as it is.

    Raises:
        InvalidSettingError: If the batch system does not tell the nodes of the allocation we are in.
    """
    if not (isinstance(site, ParslSiteSpec) and site.takes_all_nodes):
        return site
    if not is_in_allocation(os.environ):
        logger.warning("site %s: nodes: auto, but no allocation: this machine alone is used", site.name)
    try:
        return site.in_allocation(len(node_names(os.environ)))
    except (OSError, subprocess.SubprocessError) as error:
        found = f"auto, but the nodes of this allocation cannot be listed ({error})"
        raise InvalidSettingError(f"site {site.name}: nodes", found, "a number") from error


def counted_here(sites: Iterable[SiteSpec]) -> dict[str, int]:
    """Return the slots of this machine for each site that is this machine and leaves them to be counted."""
    return {s.name: gpu_count(s.accelerator) for s in sites if s.is_local and s.gpus_per_node == "auto"}


def _shortfall(site: SiteBase, names: list[str], least: NodeSlots, nodes: int) -> str:
    """Return a message on what a pilot has less of than declared, or uses without that, or nothing."""
    words = []
    if nodes < site.nodes_per_pilot and not site.takes_all_nodes:
        words.append(f"{nodes} nodes of the {site.nodes_per_pilot} declared")
    if nodes < len(names) and isinstance(site, ParslSiteSpec) and site.leaves_nodes_open:
        words.append(f"{nodes} of the {len(names)} nodes of this allocation (nodes: auto takes all)")
    gpus = len(least.gpus)
    if site.gpus_per_node != "auto" and gpus < site.gpus_per_node:
        words.append(f"{gpus} GPUs on {least.node} of the {site.gpus_per_node} declared")
    return f"used with {' and '.join(words)}" if words else ""


def _usable_nodes(site: SiteBase, names: list[str], is_local: bool) -> list[str]:
    """Return the nodes that were found; of the allocation that this process is in, as many as were declared.

    One machine stands for as many as were declared, under names of their own.
    """
    if site.takes_all_nodes:
        return names
    declared = site.nodes_per_pilot
    if is_local and len(names) == 1 < declared:
        return [f"node{i}" for i in range(declared)]
    return names[:declared] if is_local else names


def _usable_gpus(site: SiteBase, found: int) -> int:
    """Return the slots of a node: as declared, unless its devices were counted and are fewer.

    Cards of Intel's are counted, but a slot is a tile, of which a card may have two: there the
    declaration holds.
    """
    declared = site.gpus_per_node
    if declared == "auto":
        return found
    return found if site.accelerator in COUNTED and 0 < found < declared else declared
