"""Builds Parsl's objects from a site file: provider, executor, data-flow kernel.

With `staging`, the only module that imports Parsl at its top; it is imported where a backend opens.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import parsl.providers
import zmq
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.executors.threads import ThreadPoolExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers.errors import SubmitException

from parsl_rasda.agent.node_probe import BEGAN_VARIABLE
from parsl_rasda.agent.orphan_reaper import RUN_VARIABLE
from parsl_rasda.backends.parsl import staging
from parsl_rasda.backends.parsl.interchange import INTERCHANGE_DIED
from parsl_rasda.errors import InvalidSettingError, SiteUnavailableError
from parsl_rasda.private_files import current_umask
from parsl_rasda.study.parsl_site import ParslSiteSpec

_LOCAL_POLLING_S = 1
_BATCH_POLLING_S = 15  # Parsl's providers say 60: a minute of a dead pilot's GPUs, for every pilot
_HEARTBEAT_S = 2  # also how soon a killed worker is noticed
_STRATEGY_S = 1
_LOOK_MS = 200.0  # how often an interchange that is to answer is looked at
_INIT_VARIABLE = "PARSL_RASDA_INIT"  # in base64: what the `worker_init` of a site does
INIT_FAILED = "parsl_rasda: worker_init failed"
_NO_REQUEUE = "#SBATCH --no-requeue"  # run a second time, a pilot finds its study elsewhere
_WORKERS = "parsl-rasda-workers"  # a script of this package, with the arguments of Parsl's own

_PILOT_ENDED = "its pilot has ended"

BlockStates = Mapping[str, Any]  # parsl.jobs.states.JobStatus by block id; Parsl is untyped


class PilotExecutor(HighThroughputExecutor):  # type: ignore[misc]  # Parsl is untyped
    """An executor whose one block is asked for and cancelled by us, never by Parsl's strategy.

    Parsl asks the interchange for the state of blocks, and sends it tasks, without a time limit; were it
    dead, the thread would hang, and the shutdown with it or abort the program. Here only the provider is
    asked, and a task that nobody would take is refused.
    """

    polling_s = _BATCH_POLLING_S
    site_name = ""
    refusal = ""  # what the batch system said when it last refused a block
    _has_ended = False

    def start(self) -> None:
        """Start the interchange."""
        self._sending = threading.Lock()
        super().start()

    @property
    def status_polling_interval(self) -> int:
        """Seconds between questions to the batch system."""
        return self.polling_s

    def status(self) -> BlockStates:
        """Return the state of every block, from the provider alone; of none once it has ended."""
        if self._has_ended:
            return {}
        states: BlockStates = BlockProviderExecutor.status(self)
        return states

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        """Cancel blocks, busy or not."""
        if self._has_ended:
            return []
        ended: list[str] = BlockProviderExecutor.scale_in(self, blocks)
        return ended

    def _launch_block(self, block_id: str) -> Any:
        """Ask the provider for a block; keep what it says if it refuses, which Parsl wraps and cuts."""
        self.refusal = ""
        try:
            return super()._launch_block(block_id)
        except SubmitException as error:
            self.refusal = refusal_of(error)
            raise

    def cancel(self, block: str) -> None:
        """Cancel a block that has not ended: for one that is ending, scancel would take ten seconds."""
        state = self.status_facade.get(block)
        if state is None or not state.terminal:
            self.scale_in_facade(1)

    def submit(self, *task: Any, **named: Any) -> Any:  # Parsl's own, which is untyped
        """Send a task to the block.

        Raises:
            SiteUnavailableError: If it has ended.
        """
        with self._sending:
            if self._has_ended:
                raise SiteUnavailableError(self.site_name, _PILOT_ENDED)
            return super().submit(*task, **named)

    def end(self) -> None:
        """End for good: a pool that outlives its block finds nobody, and what was sent there has failed."""
        if self._has_ended:
            return
        self._has_ended = True
        if self.interchange_proc is not None:
            self.interchange_proc.kill()  # also one that hangs, for which a task may be waiting
        with self._sending:
            self.outgoing_q.zmq_socket.setsockopt(zmq.LINGER, 0)  # nobody takes the rest
            self.shutdown()
        for future in tuple(self.tasks.values()):
            if not future.done():
                future.set_exception(SiteUnavailableError(self.site_name, _PILOT_ENDED))

    @property
    def is_dead(self) -> bool:
        """Whether the interchange has ended: nothing will come back from this executor."""
        return self.interchange_proc is not None and self.interchange_proc.poll() is not None

    def _start_local_interchange_process(self) -> None:
        """Start it and ask for its ports: for an answer of one that has died Parsl would wait two minutes."""
        for pipe in (self.command_client, self.outgoing_q):
            pipe.zmq_socket = _SocketToInterchange(pipe.zmq_socket, self)
        super()._start_local_interchange_process()


class _SocketToInterchange:
    """A socket that waits for the other side only as long as that lives."""

    def __init__(self, socket: Any, executor: PilotExecutor) -> None:  # a socket of pyzmq's, untyped here
        self._socket, self._executor = socket, executor

    def poll(self, timeout: float, flags: int) -> int:
        """Return the flags that hold, or 0 after so many milliseconds, or when nobody will ever answer."""
        give_up = time.monotonic() + timeout / 1000
        while True:
            left_ms = max(0.0, 1000 * (give_up - time.monotonic()))
            found = int(self._socket.poll(min(left_ms, _LOOK_MS), flags))
            if found or not left_ms or self._executor.is_dead:
                return found

    def send_pyobj(self, message: object, **options: Any) -> None:
        """Send a pickle, which waits for somebody who will take it.

        Raises:
            SiteUnavailableError: If nobody ever will.
        """
        while not self._socket.poll(_LOOK_MS, zmq.POLLOUT):
            if self._executor.is_dead:
                raise SiteUnavailableError(self._executor.site_name, INTERCHANGE_DIED)
        self._socket.send_pyobj(message, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def refusal_of(error: SubmitException) -> str:
    """Return what a batch system said when it refused a job: its own words, or Parsl's."""
    said = [str(text).strip() for text in (error.stderr, error.stdout) if text and str(text).strip()]
    return said[0] if said else str(error.message)


def build_kernel(run_dir: Path) -> DataFlowKernel:
    """Return a data-flow kernel of our own, to which executors are added as pilots are asked for."""
    config = Config(
        # Parsl wants at least one executor and takes a pool of two threads if there is none.
        executors=[ThreadPoolExecutor(label="controller", max_threads=1)],
        run_dir=str(run_dir),
        strategy="none",
        strategy_period=_STRATEGY_S,
        retries=0,  # a retry without the machine's knowledge would run beside its own
        usage_tracking=0,
        initialize_logging=False,
    )
    return DataFlowKernel(config)


def build_executor(
    site: ParslSiteSpec,
    label: str,
    *,
    workers: int,
    addresses: tuple[str, ...],
    worker_init: str,
    mark: str,
    on_states: Callable[[str, BlockStates], None],
) -> PilotExecutor:
    """Return an executor for one pilot at a time.

    Args:
        site: Names the provider and its arguments.
        label: Parsl's name for the executor.
        workers: Tasks at a time: jobs and stages.
        addresses: Where pilots may reach this machine. If it is one, nothing is bound elsewhere; of several,
            Parsl's manager takes the first that answers, and all interfaces are listened at.
        mark: Marks the interchange as ours (`orphan_reaper`).
        worker_init: Shell lines to run after the site's own, before Parsl's manager.
        on_states: Called from Parsl's poller with the label and the state of every block.

    Raises:
        InvalidSettingError: If the provider is unknown, or refuses its arguments.
    """
    is_local = site.provider.type == "LocalProvider"
    threshold_s = max(int(site.heartbeat_threshold_s), _HEARTBEAT_S + 1)
    executor = PilotExecutor(
        label=label,
        provider=build_provider(site, worker_init),
        interchange_launch_cmd=(
            *("/usr/bin/env", f"{RUN_VARIABLE}={mark}"),
            # -P: nothing in the folder that we were started in may take the place of Python's modules
            *(sys.executable, "-P", "-m", "parsl_rasda.backends.parsl.interchange"),
        ),
        launch_cmd=launch_command(site),
        address=addresses[0] if len(addresses) == 1 else None,
        encrypted=True,  # tasks have the key of the control channel, and are pickles
        cores_per_worker=1e-9,  # workers only wait for their launches
        max_workers_per_node=workers,
        heartbeat_period=_HEARTBEAT_S,
        heartbeat_threshold=threshold_s,
        storage_access=staging.providers(),
        block_error_handler=lambda executor, states: on_states(executor.label, states),
    )
    executor.all_addresses = set(addresses)  # else each that this machine has
    executor.site_name = site.name
    executor.polling_s = _LOCAL_POLLING_S if is_local else _BATCH_POLLING_S
    return executor


def launch_command(site: ParslSiteSpec) -> str:
    """Return the shell command that starts the workers of a pilot, for Parsl to fill in.

    A ``worker_init`` puts what it wants on PATH. Without one they are those of this very environment, if the
    pilot has it: PATH may name another one first.
    """
    found = _WORKERS
    if not site.provider.options.get("worker_init"):
        ours = shlex.quote(str(Path(sys.executable).parent / _WORKERS))
        ours = ours.replace("{", "{{{{").replace("}", "}}}}")  # Parsl fills it in twice
        found = f'"$(command -v {ours} || echo {_WORKERS})"'
    return str(DEFAULT_LAUNCH_CMD).replace("process_worker_pool.py", found, 1)


def checked(lines: str, *, is_secret: bool = False) -> str:
    """Return a site's ``worker_init`` so that the pilot ends where it fails; later lines are not its own.

    Else ``module load`` or ``source`` would fail unnoticed, and ranks would run in what Python comes first.

    Args:
        lines: Shell lines; ``set +e`` as their first lets them fail. ``-e`` and ``-u`` end with them.
        is_secret: They must not be shown.
    """
    if not lines.strip():
        return ""
    command = "" if is_secret else ": $BASH_COMMAND"
    told = f'echo "{INIT_FAILED} with exit status $parsl_rasda_init{command}" >&2'
    ends = f"{told}; exit $((parsl_rasda_init ? parsl_rasda_init : 1))"
    trap = f"""trap 'parsl_rasda_init=$?; [ -n "${{parsl_rasda_ready-}}" ] || {{ {ends}; }}' EXIT"""
    return f"{trap}\nset -e\n{lines}\nset +eu; parsl_rasda_ready=1"


def worker_init(mark: str) -> str:
    """Return the shell lines that every pilot of ours needs, of the run with this mark."""
    return "\n".join(
        (
            f"umask {current_umask():04o}",  # batch systems need not pass it on
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"export {RUN_VARIABLE}={mark}",
            # Stages run side by side: torch's default, a thread a core for each, stalls them all.
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}",
            # Last, so that a launcher from the site's modules comes before one from the environment.
            f'export PATH="$PATH":{shlex.quote(str(Path(sys.executable).parent))}',
        )
    )


# How batch systems that pass no environment on are told to pass a variable on.
_PASSING_ON = {"GridEngineProvider": "#$ -v {}", "CondorProvider": "getenv = {}"}
_OF_PBS = ("PBSProProvider", "TorqueProvider")
_PASSED_BY_PBS = re.compile(
    r"^(#PBS\b.*?)[ \t]+-v[ \t]*((?:\"[^\"]*\"|'[^']*'|[^\s\"'])+)(.*)$", re.MULTILINE
)


def passing_on(provider: str, options: str, names: Iterable[str]) -> str:
    """Return the options of a batch system so that it passes variables on, if it must be told.

    PBS heeds only the last ``-v`` of a script, so the names of those there are and ours come in one.
    """
    if provider not in _OF_PBS:
        told = _PASSING_ON.get(provider, "")
        return "\n".join((options, *(told.format(name) for name in names if told)))
    theirs = [found[2] for found in _PASSED_BY_PBS.finditer(options)]
    rest = _PASSED_BY_PBS.sub(lambda found: f"{found[1]}{found[3]}", options).splitlines()
    passed = ",".join(dict.fromkeys((*theirs, *names)))
    told = f"#PBS -v {passed}" if passed else ""
    return "\n".join((*(line for line in rest if line.strip() != "#PBS"), told))


def _from_environment(site: ParslSiteSpec, text: str) -> tuple[str, str]:
    """Return shell lines that run a text without containing it, for its variables may be secret.

    It comes with the environment, in the variable whose name is returned, too.
    """
    name = f"{_INIT_VARIABLE}_{hashlib.blake2b(site.name.encode(), digest_size=4).hexdigest()}"
    os.environ[name] = base64.b64encode(text.encode()).decode()  # a line without commas and quotes
    missing = "did not come with the job, so the variables of worker_init are unknown: see SECURITY.md"
    lines = (
        f': "${{{name}:?{missing}}}"',
        f'eval "$(printf %s "${name}" | base64 -d)"',
        f"unset {name}",
    )
    return "\n".join(lines), name


def build_provider(site: ParslSiteSpec, ours: str) -> Any:  # any of Parsl's providers, which are untyped
    """Return the provider of a site's pilots, one allocation each.

    Args:
        site: Names it and its arguments.
        ours: Shell lines to run after the site's ``worker_init``.

    Raises:
        InvalidSettingError: If it is unknown, or refuses its arguments.
    """
    options = dict(site.provider.options)
    theirs = str(options.pop("worker_init", ""))
    if is_secret := ("provider", "worker_init") in site.written:
        theirs, name = _from_environment(site, theirs)
        passed = passing_on(site.provider.type, str(options.get("scheduler_options", "")), [name])
        if passed.strip():
            options["scheduler_options"] = passed
    try:
        build = getattr(parsl.providers, site.provider.type)
    except AttributeError:
        known = ", ".join(name for name in parsl.providers.__all__ if name.endswith("Provider"))
        raise InvalidSettingError("provider.type", site.provider.type, known) from None
    init = checked(theirs, is_secret=is_secret)
    clock = f"export {BEGAN_VARIABLE}=$(date +%s)"  # modules may take minutes of a walltime
    options |= {"nodes_per_block": site.nodes_per_pilot, "worker_init": f"{clock}\n{init}\n{ours}\n"}
    if site.provider.type == "SlurmProvider":  # first, so the site file may override it
        options["scheduler_options"] = f"{_NO_REQUEUE}\n{options.get('scheduler_options', '')}"
        if options.get("exclusive") is False and isinstance(site.gpus_per_node, int):
            # Of a node that may be shared, Parsl asks for one core, and no step would fit.
            options.setdefault("cores_per_node", site.threads_per_rank * site.gpus_per_node)
    options |= {"init_blocks": 0, "min_blocks": 0, "max_blocks": 1}
    try:
        return build(launcher=SimpleLauncher(), **options)
    except TypeError as error:
        raise InvalidSettingError(f"provider ({site.provider.type})", str(error), "its arguments") from error
