r"""Scripts that cannot be changed, as trainings.

The command of the study is run on every rank, in one go from the epoch it stands at to the one it is
asked for. Its words are filled in as by `str.format`, so ``{lr:.3e}`` is a rounded number and ``{{`` a
bracket; lists and mappings are written as JSON. ``{name}`` stands for an output of an earlier stage or a
constant of the study, a hyperparameter, or for:

``{until}``       epochs done when it must end            ``{epoch}``       epochs already done
``{checkpoint}``  directory to resume from, or empty      ``{out}``         directory to save into
``{report}``      JSON file it must write: ``{"val_loss": 0.1}``; ``epoch`` there if it is not ``{until}``
``{replicas}`` ``{world_size}`` ``{batch_size}`` ``{seed}``

``RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT`` are set as torchrun would. TERM
is passed on; a script that then saves and reports an epoch has lost nothing. `workflows/ddp_script` is an
example.
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
from collections import deque
from pathlib import Path
from typing import IO

from parsl_rasda.errors import TrainingError
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.checkpoints.checkpoint import checkpoint_name, publish_checkpoint, read_header
from parsl_rasda.runtime.engine.group import PeersLostError, listening, publish_address, published_address
from parsl_rasda.runtime.process.attempt import Leave, Session
from parsl_rasda.types import JSON, Outcome

POLL_S = 0.05
_PORTS = range(20_000, 30_000)  # below those that Linux gives to whoever asks for any (ip_local_port_range)


def run_command(session: Session) -> None:
    """Run the order's command to its end and report what it reports.

    Raises:
        TrainingError: If it fails or reports nothing of use.
        PeersLostError: If something from outside killed it.
        CheckpointError: If the one to resume from is gone.
        Leave: If it was told to leave and has nothing new to show.
    """
    order, directory = session.order, session.directory
    out = directory / (checkpoint_name(order.until) + ".tmp")
    report = directory / "command-report.json"
    out.mkdir(exist_ok=True)
    if order.resume_from and session.is_main:
        with session.taking_up():
            read_header(session.find_checkpoint(order.resume_from))
    environment = _environment(session)  # the other ranks wait here for rank 0
    resumed = session.find_checkpoint(order.resume_from) if order.resume_from else None
    argv = filled(order, out=out, report=report, checkpoint=resumed)
    session.interruptible = False
    session.is_prepared = True  # the script is told, and decides
    began = time.monotonic()
    session.ready()
    status, last_line = _run(argv, environment, session)
    if not session.is_main:
        _check(status, last_line, preempted=session.preempt_cause is not None)
        (directory / f"done-{session.context.rank}").touch()
        session.outcome = Outcome.REACHED
        return
    if status == 0:
        _await_ranks(directory, session.context.size)
    if not report.exists():
        _check(status, last_line, preempted=session.preempt_cause is not None)
        if session.preempt_cause:
            raise Leave(agreed=True)
        raise TrainingError(f"The command ended well but wrote no {report.name}.", "It must write {report}.")
    if not session.preempt_cause:
        _check(status, last_line, preempted=False)
    epoch, metrics = _read(report, order)
    session.epoch = epoch
    path = directory / checkpoint_name(epoch)
    publish_checkpoint(out, path, {"epoch": epoch, "step": 0, "replicas": session.replicas})
    session.add_checkpoint(path)
    session.record(metrics, (time.monotonic() - began) / max(1, epoch - order.epoch))
    session.outcome = Outcome.REACHED if epoch >= order.until else Outcome.PREEMPTED


def filled(order: JobSpec, *, out: Path, report: Path, checkpoint: Path | None = None) -> list[str]:
    """Return the command with every ``{name}`` replaced.

    Raises:
        TrainingError: If this trial has no such name, or its value another type than the format wants.
    """
    values = {
        **{name: _as_text(value) for name, value in {**order.inputs, **order.config}.items()},
        "until": order.until,
        "epoch": order.epoch,
        "checkpoint": str(checkpoint or ""),
        "out": str(out),
        "report": str(report),
        "replicas": order.replicas,
        "world_size": order.world_size,
        "batch_size": order.training.batch_size,
        "seed": order.seed,
    }

    try:
        return [word.format_map(values) for word in order.command or ()]
    except KeyError as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(values))
        found = f"`training.command` names {{{error.args[0]}}}, which this trial does not have."
        raise TrainingError(found, f"It has {known}.") from error
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise TrainingError(
            f"`training.command` cannot be filled in: {error}.", "Correct its format."
        ) from error


def _as_text(value: JSON) -> JSON:
    """Return what a command line can carry: texts and numbers as they are, anything else as JSON."""
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _environment(session: Session) -> dict[str, str]:
    context = session.context
    if session.is_main:
        host, port = _meeting_point(session.directory)
        publish_address(session.directory, host, port)
    else:
        host, port = published_address(session.directory)
    return {
        **os.environ,
        "RANK": str(context.rank),
        "WORLD_SIZE": str(context.size),
        "LOCAL_RANK": str(context.device_index),
        "LOCAL_WORLD_SIZE": str(context.local_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


def _meeting_point(directory: Path) -> tuple[str, int]:
    """Return an address on this node that is free, and that the script's own rank 0 will find free.

    The port is one that the kernel never gives to others by itself, and each attempt begins to look at
    another.
    """
    first = zlib.crc32(str(directory).encode())
    for i in range(len(_PORTS)):
        try:
            with listening(os.environ, _PORTS[(first + i) % len(_PORTS)]) as probe:
                host, port = probe.getsockname()[:2]
                return str(host), int(port)
        except OSError:
            continue
    raise PeersLostError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on this node")


def _run(argv: list[str], environment: dict[str, str], session: Session) -> tuple[int, str]:
    """Return the exit status and the last words of the command."""
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    words: deque[str] = deque(maxlen=20)
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    copying = threading.Thread(target=_copy, args=(process.stderr, words), daemon=True)
    copying.start()
    told = False
    while process.poll() is None:
        time.sleep(POLL_S)
        if not told and session.must_leave():
            process.terminate()
            told = True
    copying.join(timeout=1.0)  # a grandchild may hold the pipe open
    return process.returncode, next((line for line in reversed(words) if line.strip()), "").strip()


def _await_ranks(directory: Path, size: int) -> None:
    """Wait for the others to end well; one that does not takes this rank down with the launch."""
    while not all((directory / f"done-{rank}").exists() for rank in range(1, size)):
        time.sleep(POLL_S)


def _copy(stderr: IO[bytes], words: deque[str]) -> None:
    for line in stderr:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        words.append(line.decode(errors="replace"))


def _check(status: int, last_line: str, *, preempted: bool) -> None:
    if preempted or status == 0:
        return
    if status < 0:
        raise PeersLostError(f"the command was killed by {signal.Signals(-status).name}")
    raise TrainingError(f"The command ended with exit status {status}: {last_line}", "See log.txt.")


def _read(report: Path, order: JobSpec) -> tuple[int, dict[str, float]]:
    try:
        values = json.loads(report.read_text())
        epoch = int(values.pop("epoch", order.until))
        metrics = {str(name): float(value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"The command wrote a report that cannot be read: {error}", 'It must be like {"val_loss": 0.1}.'
        ) from error
    if order.metric not in metrics:
        raise TrainingError(f"The command reported {sorted(metrics)}.", f"It must report {order.metric!r}.")
    return epoch, metrics
