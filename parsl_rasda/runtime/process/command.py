r"""Training by a script that cannot be changed.

Every rank runs the study's command once, from the current epoch to the one that is ordered. Its words are
filled in as by `str.format`: ``{lr:.3e}`` is a rounded number and ``{{`` a brace; lists and mappings are
written as JSON. ``{name}`` stands for an output of an earlier stage, a constant of the study, a
hyperparameter, or for:

``{until}``       epochs done when it must end            ``{epoch}``       epochs already done
``{max_t}``       epochs of a trial that is never stopped: what a schedule of the rate must follow, since
                  ``{until}`` is another at every rung
``{checkpoint}``  directory to resume from, or empty      ``{out}``         directory to save into
``{report}``      JSON file it must write: ``{"val_loss": 0.1}``; ``epoch`` there if it is not ``{until}``,
                  and, if it likes, ``epoch_s``: what an epoch took without the start [s]
``{batch_size}``  samples per replica and step            ``{global_batch_size}``  samples per step
``{replicas}`` ``{world_size}`` ``{seed}``

Without ``epoch_s`` the start is learnt from stretches of different lengths (`placement.times`).
All variables that torchrun sets are set (`torchrun_environment`). SIGTERM is passed on; a script that then
saves and reports an epoch loses nothing. `workflows/ddp_script` is an example.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from parsl_rasda.errors import TrainingError
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.attempt.attempt import Attempt, PreemptRequested
from parsl_rasda.runtime.attempt.torchrun import torchrun_environment
from parsl_rasda.runtime.checkpoints.checkpoint import checkpoint_name, publish_checkpoint
from parsl_rasda.runtime.checkpoints.seal import check_files
from parsl_rasda.runtime.engine.group import (
    Address,
    PeersLostError,
    listening,
    publish_address,
    published_address,
)
from parsl_rasda.runtime.engine.replicas import share_of_replica
from parsl_rasda.socket_folder import short_tmpdir
from parsl_rasda.types import JSON, Outcome, Phase
from parsl_rasda.user_modules import python_path

POLL_S = 0.05
_LAST_BYTES = 4096
_PORTS = range(20_000, 30_000)  # below those that Linux assigns by itself (ip_local_port_range)


class CommandKilledError(PeersLostError):
    """The command was killed by a signal: nobody knows why."""

    def __str__(self) -> str:
        return self.cause


def run_command(attempt: Attempt) -> None:
    """Run the job's command to its end and report what it reports.

    Raises:
        TrainingError: If it fails, or its report is missing or unusable.
        CommandKilledError: If it was killed by a signal.
        CheckpointError: If the checkpoint to resume from is gone.
        PreemptRequested: If it had to leave before it reported anything.
    """
    spec, directory = attempt.spec, attempt.directory
    out = directory / (checkpoint_name(spec.until) + ".tmp")
    report = directory / "command-report.json"
    out.mkdir(exist_ok=True)
    if spec.resume_from and attempt.is_main:
        with attempt.resuming():
            check_files(attempt.find_checkpoint(spec.resume_from))
    environment = _environment(attempt)  # the other ranks wait here for rank 0
    resumed = attempt.find_checkpoint(spec.resume_from) if spec.resume_from else None
    argv = filled(spec, out=out, report=report, checkpoint=resumed)
    attempt.interruptible = False
    attempt.is_prepared = True  # the script gets the signal, and decides
    began = time.monotonic()
    attempt.enter(Phase.FIRST_STEP)
    status, last_line = _run(argv, environment, attempt)
    if attempt.is_main and status == 0:
        _await_ranks(directory, attempt.context.size)
    _check(status, last_line, preempted=attempt.preempt_cause is not None)
    if attempt.is_main:
        _record(attempt, report, out, began)
    else:
        (directory / f"done-{attempt.context.rank}").touch()
        attempt.outcome = Outcome.REACHED


def _record(attempt: Attempt, report: Path, out: Path, began: float) -> None:
    """Publish and report what the command has saved."""
    spec, directory = attempt.spec, attempt.directory
    if not report.exists():
        if attempt.preempt_cause:
            raise PreemptRequested(agreed=True)
        raise TrainingError(f"The command succeeded but wrote no {report.name}.", "It must write {report}.")
    epoch, metrics = _read(report, spec)
    told_s = metrics.pop("epoch_s", None)
    attempt.enter(Phase.TRAINING)
    attempt.epoch = epoch
    path = directory / checkpoint_name(epoch)
    publish_checkpoint(
        out, path, {"epoch": epoch, "step": 0, "replicas": attempt.replicas, "batches": attempt.batches}
    )
    attempt.add_checkpoint(path)
    mean_s = (time.monotonic() - began) / max(1, epoch - spec.epoch)
    attempt.record(metrics, mean_s if told_s is None else told_s, includes_startup=told_s is None)
    attempt.outcome = Outcome.REACHED if epoch >= spec.until else Outcome.PREEMPTED


def filled(spec: JobSpec, *, out: Path, report: Path, checkpoint: Path | None = None) -> list[str]:
    """Return the command with every ``{name}`` replaced.

    Raises:
        TrainingError: If this trial has no such name, or its value does not fit the format.
    """
    share = share_of_replica(spec.training.batch_size, spec.batches, spec.replicas)
    values = {
        **{name: _as_word(value) for name, value in {**spec.inputs, **spec.config}.items()},
        "until": spec.until,
        "max_t": spec.max_epochs,
        "epoch": spec.epoch,
        "checkpoint": str(checkpoint or ""),
        "out": str(out),
        "report": str(report),
        "replicas": spec.replicas,
        "world_size": spec.world_size,
        "batch_size": share,
        "global_batch_size": share * spec.replicas,
        "seed": spec.seed,
    }
    try:
        return [word.format_map(values) for word in spec.command or ()]
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        found = f"`training.command` names {{{error.args[0]}}}, which this trial does not have."
        raise TrainingError(found, f"It has {known}.") from error
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise TrainingError(
            f"`training.command` cannot be filled in: {error}.", "Correct its format."
        ) from error


def _as_word(value: JSON) -> JSON:
    """Return strings and numbers as they are, and anything else as JSON, which a command line can carry."""
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _environment(attempt: Attempt) -> dict[str, str]:
    if attempt.is_main:
        address = _free_address(attempt.directory)
        publish_address(attempt.directory, address)
    else:
        address = published_address(attempt.directory)
    environ = {
        **os.environ,
        **short_tmpdir(os.environ),
        "PYTHONPATH": python_path([*attempt.spec.search_path, str(Path.cwd())], os.environ),
    }
    return torchrun_environment(attempt.spec, attempt.context, environ, address.host, address.port)


def _free_address(directory: Path) -> Address:
    """Return an address on this node that is free now, and when the script's rank 0 binds to it.

    The kernel never assigns such a port by itself, and each attempt searches from another one.
    """
    first = zlib.crc32(str(directory).encode())
    for i in range(len(_PORTS)):
        try:
            with listening(os.environ, _PORTS[(first + i) % len(_PORTS)]) as probe:
                host, port = probe.getsockname()[:2]
                return Address(str(host), int(port))
        except OSError:
            continue
    raise PeersLostError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on this node")


def _run(argv: list[str], environment: dict[str, str], attempt: Attempt) -> tuple[int, str]:
    """Return the exit status of the command and the last line that it wrote to stderr."""
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    last = bytearray()
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    copying = threading.Thread(target=_copy, args=(process.stderr, last), daemon=True)
    copying.start()
    is_stopping = False
    while process.poll() is None:
        time.sleep(POLL_S)
        if not is_stopping and attempt.must_leave():
            process.terminate()
            is_stopping = True
    copying.join(timeout=1.0)  # a grandchild may hold the pipe open
    lines = last.decode(errors="replace").splitlines()
    return process.returncode, next((line for line in reversed(lines) if line.strip()), "").strip()


def _await_ranks(directory: Path, size: int) -> None:
    """Wait for the other ranks to succeed. If one does not, the launch ends, and this rank with it."""
    while not all((directory / f"done-{rank}").exists() for rank in range(1, size)):
        time.sleep(POLL_S)


def _copy(stderr: Any, last: bytearray) -> None:  # a BufferedReader, which Popen calls IO
    """Pass on what is written, and keep the end of it; a line may have none."""
    while piece := stderr.read1(65536):
        last[:] = (last + piece)[-_LAST_BYTES:]
        with suppress(OSError):  # the log is full; the command must not wait for its reader
            sys.stderr.buffer.write(piece)
            sys.stderr.buffer.flush()


def _check(status: int, last_line: str, *, preempted: bool) -> None:
    if preempted or status == 0:
        return
    if status < 0:
        raise CommandKilledError(f"the command was killed by {signal.Signals(-status).name}")
    raise TrainingError(f"The command ended with exit status {status}: {last_line}", "See log.txt.")


def _read(report: Path, spec: JobSpec) -> tuple[int, dict[str, float]]:
    try:
        values = json.loads(report.read_text(encoding="utf-8"))
        epoch = int(values.pop("epoch", spec.until))
        metrics = {str(name): float(value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"The command's report cannot be read: {error}", 'It must be like {"val_loss": 0.1}.'
        ) from error
    if spec.metric not in metrics:
        raise TrainingError(f"The command reported {sorted(metrics)}.", f"It must report {spec.metric!r}.")
    return epoch, metrics
