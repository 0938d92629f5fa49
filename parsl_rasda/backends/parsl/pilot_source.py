"""Where a Parsl backend's pilots come from: our own executors, or one of a program that has its own.

A *lane* is an executor's label. It carries one pilot at a time and is used again when that has
ended, so that a study that goes through many allocations keeps few interchanges.
All methods may block for seconds and are called from one thread, the backend's pilot thread.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, Protocol, TypeAlias

from parsl_rasda.agent import node_probe, pbs, slurm
from parsl_rasda.errors import InvalidSettingError, SiteUnavailableError
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.orchestration.run_directory import check_folder
from parsl_rasda.study.sites import ParslSiteSpec

if TYPE_CHECKING:
    from parsl_rasda.backends.parsl.htex import BlockStates, PilotExecutor

ExecutorLabel = NewType("ExecutorLabel", str)
NO_EXECUTOR = ExecutorLabel("")

_LOOPBACK = "127.0.0.1"
_SPARE_S = 5.0
_ENDING_S = 15.0
_UNREACHED = "No viable ZMQ"  # Parsl's manager, when it has tried all addresses
_LAST_WORDS_LINES, _LAST_WORDS_CHARACTERS = 3, 300
_LOOK_AGAIN_S = 1.0
_UNKNOWN_SLOTS_PER_NODE = 8  # where only the pilot can count them
_ASK = {"SlurmProvider": slurm.ask, "PBSProProvider": pbs.ask}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LaneEnd:
    """Why a lane's pilot is gone.

    Attributes:
        is_preemption: The batch system took it back as announced; jobs on it are not to blame.
    """

    cause: str
    is_preemption: bool


class PilotSource(Protocol):
    """Starts and ends pilots, and sends tasks to them."""

    address: str
    is_local: bool

    @property
    def walltime(self) -> str | None:
        """What its provider asks for, ``HH:MM:SS``, if that ends its pilots."""
        ...

    def begin(self) -> ExecutorLabel:
        """Ask for a pilot; returns when it is in the queue.

        Raises:
            SiteUnavailableError: If it is refused at once.
        """
        ...

    def end(self, lane: ExecutorLabel) -> None:
        """Give a lane's pilot back."""
        ...

    def submit(
        self, lane: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        """Send a task to a lane's pilot, or to its queue. From any one thread at a time."""
        ...

    def look(self, lane: ExecutorLabel) -> LaneEnd | None:
        """Ask the batch system whether a lane's silent pilot has ended."""
        ...

    def close(self) -> None:
        """Give everything back; returns when Parsl's processes here have ended."""
        ...


OnPilotEnd: TypeAlias = Callable[[ExecutorLabel, LaneEnd], None]
PilotSourceFactory: TypeAlias = Callable[[str, OnPilotEnd], PilotSource]
"""Makes a source when a backend opens, from the mark of the run and who is told of ends not asked for."""


def own_pilots(site: ParslSiteSpec, context: BackendContext) -> PilotSourceFactory:
    """Return what makes pilots of a site's provider.

    Raises:
        RunDirectoryError: If Parsl cannot work in the run directory or in the site's `work_dir`.
    """
    check_folder(context.run_directory or context.directory)
    if site.work_dir:
        check_folder(Path(site.work_dir))
    slots = site.slots_per_pilot or site.nodes_per_pilot * _slots_per_node(site)
    workers = max(1, slots // context.narrowest) + context.stages_at_once
    python_path = (*context.python_path, Path.cwd())
    return lambda mark, on_end: OwnPilots(
        site, context.directory, mark, workers=workers, python_path=python_path, on_end=on_end
    )


def pilots_in_executor(kernel: Any, label: str) -> PilotSourceFactory:
    """Return what makes a pilot of one executor of a loaded ``parsl.DataFlowKernel`` (Parsl is untyped)."""
    return lambda mark, on_end: ExecutorPilots(kernel, label)


class OwnPilots:
    """Pilots in executors of our own, in a data-flow kernel of our own."""

    def __init__(
        self,
        site: ParslSiteSpec,
        directory: Path,
        mark: str,
        *,
        workers: int,
        python_path: tuple[Path, ...],
        on_end: OnPilotEnd,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            site: A machine reached through a Parsl provider.
            directory: For Parsl's own files.
            mark: Marks every process of the run (`orphan_reaper`).
            workers: Tasks at a time on a pilot.
            python_path: Folders of user modules.
            on_end: Called from a thread of Parsl's when a pilot has ended that was not given back.
        """
        self._site, self._directory, self._mark = site, directory, mark
        self._workers, self._python_path, self._on_end = workers, python_path, on_end
        self._kernel: Any = None  # parsl.DataFlowKernel, untyped
        self._executors: dict[ExecutorLabel, PilotExecutor] = {}
        self._blocks: dict[ExecutorLabel, str] = {}
        # Until the interchange has missed its heartbeats, it sends tasks to the manager of a dead pilot.
        self._free_from: dict[ExecutorLabel, float] = {}
        self.is_local = site.is_local
        self.address = _address_of(site)

    @property
    def walltime(self) -> str | None:
        """What the provider asks for: the site file's, or Parsl's default."""
        return next((_walltime(executor.provider) for executor in self._executors.values()), None)

    def begin(self) -> ExecutorLabel:
        """Ask for a pilot, in an executor that has none."""
        free = [
            lane for lane, executor in self._executors.items() if self._is_free(lane) and not executor.is_dead
        ]
        lane = free[0] if free else self._add_lane()
        executor = self._executors[lane]
        blocks = executor.scale_out_facade(1)
        if not blocks:
            refusals = [str(state.message) for state in executor.status_facade.values() if state.message]
            raise SiteUnavailableError(self._site.name, " ".join(refusals[-1:] or ["the provider refused"]))
        self._blocks[lane] = blocks[0]
        return lane

    def end(self, lane: ExecutorLabel) -> None:
        """Cancel the lane's block."""
        block = self._blocks.pop(lane, None)
        if block is not None:
            self._free_from[lane] = time.monotonic() + self._site.heartbeat_threshold_s + _SPARE_S
            self._executors[lane].cancel(block)

    def submit(
        self, lane: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        """Send a task to the lane's executor; after `close`, its future has failed."""
        if self._kernel is None:
            refused: Future[Any] = Future()
            refused.set_exception(SiteUnavailableError(self._site.name, "the backend was closed"))
            return refused
        future: Future[Any] = self._kernel.submit(
            function,
            app_args=arguments,
            executors=[lane],
            cache=False,
            ignore_for_cache=None,
            app_kwargs=named,
        )
        return future

    def look(self, lane: ExecutorLabel) -> LaneEnd | None:
        """Ask the provider now, and again for a while: a batch job that was ended takes time to end."""
        executor = self._executors[lane]
        give_up = time.monotonic() + _ENDING_S
        while True:
            end = self._judge(lane, executor.status(), is_dead=executor.is_dead, is_silent=True)
            if end is not None or self.is_local or time.monotonic() > give_up:
                return end
            time.sleep(_LOOK_AGAIN_S)

    def close(self) -> None:
        """Cancel every block and end the kernel with its interchanges."""
        for lane in tuple(self._blocks):
            self.end(lane)
        if self._kernel is not None:
            self._kernel.cleanup()
            self._kernel = None
        self._executors.clear()

    def _is_free(self, lane: ExecutorLabel) -> bool:
        return lane not in self._blocks and time.monotonic() > self._free_from.get(lane, 0.0)

    def _add_lane(self) -> ExecutorLabel:
        from parsl_rasda.backends.parsl import htex

        lane = ExecutorLabel(f"{self._site.name}-{len(self._executors)}")
        executor = htex.build_executor(
            self._site,
            lane,
            workers=self._workers,
            address=self.address,
            worker_init=htex.worker_init(self._mark, self._python_path),
            mark=self._mark,
            on_states=self._polled,
        )
        if self._kernel is None:
            self._kernel = htex.build_kernel(self._directory)
        self._kernel.add_executors([executor])
        self._executors[lane] = executor
        return lane

    def _polled(self, label: str, states: BlockStates) -> None:
        lane = ExecutorLabel(label)
        executor = self._executors.get(lane)
        end = None if executor is None else self._judge(lane, states, is_dead=executor.is_dead)
        if end is not None:
            self._on_end(lane, end)

    def _judge(
        self, lane: ExecutorLabel, states: BlockStates, *, is_dead: bool, is_silent: bool = False
    ) -> LaneEnd | None:
        """Return why a lane's pilot is gone; a silent one may also wait in the queue once more."""
        from parsl.jobs.states import JobState

        block = self._blocks.get(lane)
        if block is None:
            return None
        if is_dead:
            return LaneEnd("Parsl's interchange on the controller's machine died", is_preemption=False)
        state = states.get(block)
        if state is None or not (state.terminal or is_silent):
            return None
        verdict = self._verdict(lane, block)
        if verdict is not None:
            said = [] if verdict.is_preemption else _last_words(state)
            return LaneEnd(", ".join([verdict.words, *said]), is_preemption=verdict.is_preemption)
        if not state.terminal:
            return None
        words = [f"the pilot's batch job ended: {state.state.name.lower()}"]
        words += [f"exit {state.exit_code}"] if state.exit_code is not None else []
        is_preemption = state.state in {JobState.CANCELLED, JobState.TIMEOUT}
        said = _last_words(state)
        if any(_UNREACHED in line for line in said):
            said.append(f"it did not reach this machine at {self.address}: set `address` in the site file")
        return LaneEnd(", ".join([*words, *said]), is_preemption=is_preemption)

    def _verdict(self, lane: ExecutorLabel, block: str) -> slurm.Verdict | None:
        """Return what the batch system itself says, where we know how to ask it."""
        ask = _ASK.get(self._site.provider.type)
        job = self._executors[lane].blocks_to_job_id.get(block)
        return ask(str(job)) if ask is not None and job is not None else None


class ExecutorPilots:
    """One executor of a Parsl program that is already running; it is neither started nor ended."""

    def __init__(self, kernel: Any, label: str) -> None:
        """Use the executor ``label`` of a loaded ``parsl.DataFlowKernel``."""
        self._kernel, self._lane = kernel, ExecutorLabel(label)
        executor = kernel.executors[label]
        provider = getattr(executor, "provider", None)  # a pool of threads has none
        self.is_local = provider is None or type(provider).__name__ == "LocalProvider"
        self.walltime: str | None = _walltime(provider)
        address = getattr(executor, "address", None)
        self.address: str = address or (_LOOPBACK if self.is_local else _own_address())

    def begin(self) -> ExecutorLabel:
        """Return the one lane."""
        return self._lane

    def end(self, lane: ExecutorLabel) -> None:
        """Leave the executor to its owner."""

    def submit(
        self, lane: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        """Send a task to the executor; once its owner has ended Parsl, its future has failed."""
        from parsl.errors import NoDataFlowKernelError

        future: Future[Any]
        try:
            future = self._kernel.submit(
                function,
                app_args=arguments,
                executors=[lane],
                cache=False,
                ignore_for_cache=None,
                app_kwargs=named,
            )
        except NoDataFlowKernelError:
            future = Future()
            future.set_exception(SiteUnavailableError(lane, "the program has ended Parsl"))
        return future

    def look(self, lane: ExecutorLabel) -> LaneEnd | None:
        """Return None: its owner knows."""
        return None

    def close(self) -> None:
        """Leave the kernel to its owner."""


def _walltime(provider: Any) -> str | None:  # a provider of Parsl's, untyped
    """Return a provider's walltime; HTCondor is not told it, and a pool of threads has none."""
    found = getattr(provider, "walltime", None)
    return found if isinstance(found, str) and type(provider).__name__ != "CondorProvider" else None


def words(error: BaseException) -> str:
    """Return what an error says, or its name if it says nothing."""
    return str(error) or type(error).__name__


def _last_words(state: Any) -> list[str]:  # parsl.jobs.states.JobStatus, untyped
    said = (state.message, state.stderr_summary)
    lines = [line.strip() for text in said if text for line in text.splitlines() if line.strip()]
    return [line[:_LAST_WORDS_CHARACTERS] for line in lines[-_LAST_WORDS_LINES:]]


def _slots_per_node(site: ParslSiteSpec) -> int:
    if site.is_local:
        return max(1, node_probe.gpu_count(site.accelerator))
    return _UNKNOWN_SLOTS_PER_NODE


def _address_of(site: ParslSiteSpec) -> str:
    """Return where a site's pilots reach this machine.

    Raises:
        InvalidSettingError: If it has no such interface, or that has no address.
    """
    from parsl.addresses import address_by_interface

    if isinstance(site.address, str):
        return site.address
    if site.address is None:
        return _LOOPBACK if site.is_local else _own_address()
    name = site.address.interface
    try:
        return str(address_by_interface(name))
    except OSError as error:
        there = ", ".join(known for _, known in socket.if_nameindex())
        raise InvalidSettingError("address.interface", f"{name}: {error.strerror}", there) from error


def _own_address() -> str:
    from parsl.addresses import address_by_hostname

    return str(address_by_hostname())
