"""Where a Parsl backend's pilots come from: executors of our own, or one of a program that has its own.

An executor carries one pilot and ends with it: a worker pool that outlives its batch job would be taken for
the next one's, which it reaches first. Executors are known by their labels.
All methods may block for seconds and are called from one thread, the actor's worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, Protocol, TypeAlias

from parsl_rasda.agent import node_probe, pbs, slurm
from parsl_rasda.agent.lean_parsl import import_parsl
from parsl_rasda.backends.allocation import ranks_here
from parsl_rasda.backends.parsl.batch_queue import QueuedJob, QueueWatch, look_at
from parsl_rasda.backends.parsl.interchange import INTERCHANGE_DIED
from parsl_rasda.backends.parsl.own_addresses import LOOPBACK, addresses_of, of_host_name
from parsl_rasda.backends.parsl.rank_server import RankServer
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.exits import EndedBy
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.orchestration.run_directory import check_folder
from parsl_rasda.study.parsl_site import ParslSiteSpec

if TYPE_CHECKING:
    from parsl_rasda.backends.parsl.htex import BlockStates, PilotExecutor

ExecutorLabel = NewType("ExecutorLabel", str)
NO_EXECUTOR = ExecutorLabel("")

_ENDING_S = 15.0
_LONG_PATH = "AF_UNIX path too long"  # Python, to whoever keeps sockets in TMPDIR
_UNREACHED = "No viable ZMQ"  # Parsl's manager, when it has tried all addresses
_LAST_WORDS_LINES, _LAST_WORDS_CHARACTERS = 3, 300
_POLL_S = 1.0
_UNKNOWN_SLOTS_PER_NODE = 8  # where only the pilot can count them
_ASK = {"SlurmProvider": slurm.ask, "PBSProProvider": pbs.ask}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PilotExit:
    """Why an executor's pilot is gone, for people, and what ended it."""

    cause: str
    ended_by: EndedBy


class PilotSource(Protocol):
    """Starts and ends pilots, and sends tasks to them."""

    addresses: tuple[str, ...]
    is_local: bool

    def walltime(self, label: ExecutorLabel) -> str | None:
        """Return what the provider of an executor asks for, ``HH:MM:SS``, if that ends its pilot."""
        ...

    def start(self) -> ExecutorLabel:
        """Ask for a pilot; return the label of its executor when it is in the queue.

        Raises:
            SiteUnavailableError: If it is refused at once.
        """
        ...

    def end(self, label: ExecutorLabel) -> None:
        """Release an executor's pilot."""
        ...

    def submit(
        self, label: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        """Send a task to an executor's pilot, or to its queue. From any one thread at a time."""
        ...

    def poll(self, label: ExecutorLabel) -> PilotExit | None:
        """Ask the batch system whether an executor's unresponsive pilot has ended."""
        ...

    def close(self) -> None:
        """Release everything; return when Parsl's processes here have ended."""
        ...


OnQueued: TypeAlias = Callable[[ExecutorLabel, QueuedJob], None]
OnPilotEnd: TypeAlias = Callable[[ExecutorLabel, PilotExit], None]
PilotSourceFactory: TypeAlias = Callable[[str, OnPilotEnd, OnQueued], PilotSource]
"""Makes a source when a backend opens: from the mark of the run, who is told of ends that nobody asked for,
and who is told where pilots stand in their queue."""


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
    is_as_here = not site.provider.options.get("worker_init")
    ranks = ranks_here(site) if context.forks_ranks and is_as_here else None
    return lambda mark, on_end, on_queued: OwnPilots(
        site, context.directory, mark, workers=workers, ranks=ranks, on_end=on_end, on_queued=on_queued
    )


def pilots_in_executor(kernel: Any, label: str) -> PilotSourceFactory:
    """Return what makes a pilot of one executor of a loaded ``parsl.DataFlowKernel`` (Parsl is untyped)."""
    return lambda mark, on_end, on_queued: ExecutorPilots(kernel, label)


class OwnPilots:
    """Pilots in executors of our own, in a data-flow kernel of our own."""

    def __init__(
        self,
        site: ParslSiteSpec,
        directory: Path,
        mark: str,
        *,
        workers: int,
        ranks: Mapping[str, str] | None = None,
        on_end: OnPilotEnd,
        on_queued: OnQueued = lambda label, job: None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            site: A machine reached through a Parsl provider.
            directory: For Parsl's own files.
            mark: Marks every process of the run (`orphan_reaper`).
            workers: Tasks at a time on a pilot.
            ranks: Variables of the ranks for which a fork server starts with a pilot, if it does.
            on_end: Called from a thread of Parsl's when a pilot has ended that was not released.
            on_queued: Called from it when a batch system says something new of a pilot that waits.
        """
        self._queue = QueueWatch(
            site.provider.type,
            lambda name, job: on_queued(ExecutorLabel(name), job),
            look=partial(look_at, clusters=str(site.provider.options.get("clusters") or "")),
        )
        self._site, self._directory, self._mark = site, directory, mark
        self._workers, self._on_end = workers, on_end
        self._rank_server = None if ranks is None else RankServer(ranks, mark)
        self._kernel: Any = None  # parsl.DataFlowKernel, untyped
        self._executors: dict[ExecutorLabel, PilotExecutor] = {}
        self._blocks: dict[ExecutorLabel, str] = {}
        self._numbers: dict[ExecutorLabel, int] = {}  # among those at a time: its turn of the walltimes
        self._started = 0
        self.is_local = site.is_local
        self.addresses = addresses_of(site)

    def walltime(self, label: ExecutorLabel) -> str | None:
        """Return what the provider asks for: the site file's, or Parsl's default."""
        executor = self._executors.get(label)
        return None if executor is None else _walltime(executor.provider)

    def start(self) -> ExecutorLabel:
        """Ask for a pilot, in an executor of its own; executors whose pilots have ended are ended."""
        if self._rank_server is not None:
            self._rank_server.ensure()
        for label in self._executors.keys() - self._blocks.keys():
            self._kernel.executors.pop(label)
            self._executors.pop(label).end()
        label = self._add_executor()
        executor = self._executors[label]
        blocks = executor.scale_out_facade(1)
        if not blocks:
            refusals = [str(state.message) for state in executor.status_facade.values() if state.message]
            said = executor.refusal or " ".join(refusals[-1:]) or "the provider refused"
            raise SiteUnavailableError(self._site.name, said)
        self._blocks[label] = blocks[0]
        return label

    def end(self, label: ExecutorLabel) -> None:
        """Cancel the executor's block."""
        block = self._blocks.pop(label, None)
        if block is not None:
            self._executors[label].cancel(block)

    def submit(
        self, label: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        """Send a task to an executor; after its end or `close`, its future has failed."""
        if self._kernel is None or label not in self._executors:
            refused: Future[Any] = Future()
            why = "the backend was closed" if self._kernel is None else "its pilot has ended"
            refused.set_exception(SiteUnavailableError(self._site.name, why))
            return refused
        future: Future[Any] = self._kernel.submit(
            function,
            app_args=arguments,
            executors=[label],
            cache=False,
            ignore_for_cache=None,
            app_kwargs=named,
        )
        return future

    def poll(self, label: ExecutorLabel) -> PilotExit | None:
        """Ask the provider now, and again for a while: a batch job that was ended takes time to end."""
        executor = self._executors.get(label)
        if executor is None:
            return None
        give_up = time.monotonic() + _ENDING_S
        while True:
            found = self._read_exit(label, executor.status(), is_dead=executor.is_dead, is_unresponsive=True)
            if found is not None or self.is_local or time.monotonic() > give_up:
                return found
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Cancel every block and end the kernel with its interchanges."""
        if self._rank_server is not None:
            self._rank_server.close()
        for label in tuple(self._executors):
            self.end(label)
        if self._kernel is not None:
            self._kernel.cleanup()
            self._kernel = None
        self._executors.clear()

    def _add_executor(self) -> ExecutorLabel:
        import_parsl()
        from parsl_rasda.backends.parsl import htex

        label = ExecutorLabel(f"{self._site.name}-{self._started}")
        self._started += 1
        taken = {self._numbers[other] for other in self._blocks}
        number = next(n for n in count() if n not in taken)
        executor = htex.build_executor(
            self._site.for_pilot(number),
            label,
            workers=self._workers,
            addresses=self.addresses,
            worker_init=htex.worker_init(self._mark),
            mark=self._mark,
            on_states=self._on_states,
        )
        if self._kernel is None:
            self._kernel = htex.build_kernel(self._directory)
        self._kernel.add_executors([executor])
        self._executors[label], self._numbers[label] = executor, number
        return label

    def _on_states(self, name: str, states: BlockStates) -> None:
        label = ExecutorLabel(name)
        executor = self._executors.get(label)
        if executor is not None:
            self._queue.see(name, self._waiting_job(label, executor, states))
        found = None if executor is None else self._read_exit(label, states, is_dead=executor.is_dead)
        if found is not None:
            self._on_end(label, found)

    def _waiting_job(self, label: ExecutorLabel, executor: PilotExecutor, states: BlockStates) -> str | None:
        """Return the batch job of an executor's pilot if that waits."""
        from parsl.jobs.states import JobState

        block = self._blocks.get(label)
        state = None if block is None else states.get(block)
        if state is None or state.state not in {JobState.PENDING, JobState.HELD}:
            return None
        job = executor.blocks_to_job_id.get(block)
        return None if job is None else str(job)

    def _read_exit(
        self, label: ExecutorLabel, states: BlockStates, *, is_dead: bool, is_unresponsive: bool = False
    ) -> PilotExit | None:
        """Return why a pilot is gone; an unresponsive one may also wait in the queue once more."""
        from parsl.jobs.states import JobState

        block = self._blocks.get(label)
        if block is None:
            return None
        if is_dead:
            return PilotExit(INTERCHANGE_DIED, EndedBy.PILOT_LOST)
        state = states.get(block)
        if state is None or not (state.terminal or is_unresponsive):
            return None
        end = self._ask_batch_system(label, block)
        if end is not None:
            last_words = [] if end.was_taken_back else _last_words(state)
            return _exit_of([end.words, *last_words], was_taken_back=end.was_taken_back)
        if not state.terminal:
            return None
        words = [f"the pilot's batch job ended: {state.state.name.lower()}"]
        words += [f"exit {state.exit_code}"] if state.exit_code is not None else []
        words += _last_words(state)
        if any(_UNREACHED in line for line in words):
            at = " or ".join(self.addresses)
            words.append(f"it did not reach this machine at {at}: set `address` in the site file")
        if any(_LONG_PATH in line for line in words):
            words.append("its TMPDIR is too long for sockets: put `export TMPDIR=/tmp` into worker_init")
        return _exit_of(words, was_taken_back=state.state in {JobState.CANCELLED, JobState.TIMEOUT})

    def _ask_batch_system(self, label: ExecutorLabel, block: str) -> slurm.BatchJobEnd | None:
        """Return what the batch system itself says of a block's job, where we know how to ask it."""
        ask = _ASK.get(self._site.provider.type)
        executor = self._executors.get(label)
        job = None if executor is None else executor.blocks_to_job_id.get(block)
        return ask(str(job)) if ask is not None and job is not None else None


class ExecutorPilots:
    """One executor of a Parsl program that is already running; it is neither started nor ended."""

    def __init__(self, kernel: Any, label: str) -> None:
        """Use the executor ``label`` of a loaded ``parsl.DataFlowKernel``."""
        self._kernel, self._label = kernel, ExecutorLabel(label)
        executor = kernel.executors[label]
        provider = getattr(executor, "provider", None)  # a pool of threads has none
        self.is_local = provider is None or type(provider).__name__ == "LocalProvider"
        self._provider_walltime = _walltime(provider)
        address = getattr(executor, "address", None)
        self.addresses: tuple[str, ...] = (address or (LOOPBACK if self.is_local else of_host_name()),)

    def start(self) -> ExecutorLabel:
        """Return the one label."""
        return self._label

    def walltime(self, label: ExecutorLabel) -> str | None:
        """Return what its owner asked for."""
        return self._provider_walltime

    def end(self, label: ExecutorLabel) -> None:
        """Leave the executor to its owner."""

    def submit(
        self, label: ExecutorLabel, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Future[Any]:
        """Send a task to the executor; once its owner has ended Parsl, its future has failed."""
        from parsl.errors import NoDataFlowKernelError

        future: Future[Any]
        try:
            future = self._kernel.submit(
                function,
                app_args=arguments,
                executors=[label],
                cache=False,
                ignore_for_cache=None,
                app_kwargs=named,
            )
        except NoDataFlowKernelError:
            future = Future()
            future.set_exception(SiteUnavailableError(label, "the program has ended Parsl"))
        return future

    def poll(self, label: ExecutorLabel) -> PilotExit | None:
        """Return None: its owner knows."""
        return None

    def close(self) -> None:
        """Leave the kernel to its owner."""


def _walltime(provider: Any) -> str | None:  # a provider of Parsl's, untyped
    """Return a provider's walltime; HTCondor does not get it, and a pool of threads has none."""
    found = getattr(provider, "walltime", None)
    return found if isinstance(found, str) and type(provider).__name__ != "CondorProvider" else None


def message_of(error: BaseException) -> str:
    """Return the message of an error, or its name if it has none."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - an error of somebody else's code, whose text cannot be had
        return type(error).__name__


def _exit_of(words: list[str], *, was_taken_back: bool) -> PilotExit:
    return PilotExit(", ".join(words), EndedBy.PILOT_TAKEN_BACK if was_taken_back else EndedBy.PILOT_LOST)


def _last_words(state: Any) -> list[str]:  # parsl.jobs.states.JobStatus, untyped
    texts = (state.message, state.stderr_summary)
    lines = [line.strip() for text in texts if text for line in text.splitlines() if line.strip()]
    return [line[:_LAST_WORDS_CHARACTERS] for line in lines[-_LAST_WORDS_LINES:]]


def _slots_per_node(site: ParslSiteSpec) -> int:
    if site.is_local:
        return max(1, node_probe.gpu_count(site.accelerator))
    return _UNKNOWN_SLOTS_PER_NODE
