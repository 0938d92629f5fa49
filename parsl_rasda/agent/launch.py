"""One launch as a process: pipes, signals, and the certainty that it is gone.

A launch must not outlive the worker that started it: Parsl kills workers without warning, and an orphaned
``mpiexec`` keeps its GPUs. So the launcher has a parent of its own, the `warden`, which gets a signal when
the thread that started it ends, passes it on, and ends by force what does not leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda import prctl
from parsl_rasda.agent import orphan_reaper, slurm, warden
from parsl_rasda.atomic_files import replace_file
from parsl_rasda.private_files import umask_below
from parsl_rasda.protocol import RECORD_SEPARATOR

LEAVE = warden.LEAVE  # Open MPI passes on TERM too, but then ends its ranks before they have saved
_WARDEN = (sys.executable, "-S", "-E", "-s", warden.__file__)
_KILLED_WITHIN_S = 6.0  # the warden gives up earlier
_BEFORE_TIMEOUT_S = 30.0
_READ_BYTES = 65536
LARGEST_LOG = 10_000_000  # bytes
# hydra aborts when more than 64 KiB wait unread for a busy rank 0, and no rank needs old heartbeats.
_MAX_BACKLOG_BYTES = 4096


class Launch:
    """A started launch. All methods belong to the thread that made it."""

    def __init__(self, command: Mapping[str, Any], mark: str, log: Path) -> None:
        """Start a launch.

        Args:
            command: The fields of a `launch.base.LaunchCommand`, as JSON.
            mark: Value of `orphan_reaper.JOB_VARIABLE` in every process of the launch.
            log: Where its standard error goes, and all of its standard output but control lines.

        Raises:
            OSError: If the launcher cannot be started.
        """
        for path, text in command["files"].items():
            Path(path).write_text(text, encoding="utf-8")
        if argv := command.get("before"):
            _run_before(argv, _environment(command["environment"], mark), log)
        self._mark, self._step = mark, str(command.get("step", ""))
        self._cancel = tuple(command.get("cancel", ()))
        self._log_file, self._log = log, log.open("ab", buffering=0)
        self._unread = b""
        self._unsent = b""
        starter, umask = os.getpid(), umask_below(log.parent)
        try:
            self._process = subprocess.Popen(
                (*_WARDEN, str(starter), *command["argv"]),
                env=_environment(command["environment"], mark),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                start_new_session=True,
                # One system call each; the alternative is an interpreter start per launch.
                preexec_fn=lambda: _begin(starter, umask),  # noqa: PLW1509
            )
        except BaseException:
            self._log.close()
            raise
        self.stdout = _pipe(self._process.stdout)
        self._stdin = _pipe(self._process.stdin)
        self.is_silent = False  # its standard output is closed: it is about to end, or runs on without one

    @property
    def returncode(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    def read(self) -> list[dict[str, Any]]:
        """Return the control messages that have arrived; other output goes to the log."""
        try:
            chunk = os.read(self.stdout, _READ_BYTES)
        except BlockingIOError:
            return []
        self.is_silent = not chunk
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        if not chunk:
            lines, self._unread = [*lines, self._unread], b""
        return [message for line in lines if (message := self._sort(line)) is not None]

    def write(self, message: Mapping[str, Any], *, is_optional: bool = False) -> None:
        """Send a message to rank 0; an optional one is dropped when others still wait."""
        line = json.dumps(message).encode() + b"\n"
        if not (is_optional and self._unsent) and len(self._unsent) + len(line) <= _MAX_BACKLOG_BYTES:
            self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Write as much as the launcher takes now."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._stdin, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = b""  # its end will be noticed in a moment

    def bound_log(self) -> None:
        """Begin the log afresh if it is large; its last part is kept beside it, in ``log.txt.1``.

        Everybody appends to it, so it can be cut under those who write.
        """
        size = os.fstat(self._log.fileno()).st_size
        if size > LARGEST_LOG:
            with self._log_file.open("rb") as full:
                full.seek(size - LARGEST_LOG)
                replace_file(self._log_file.with_name("log.txt.1"), full.read(LARGEST_LOG), is_durable=False)
            os.truncate(self._log_file, 0)

    def leave(self) -> None:
        """Tell the ranks to save and leave."""
        self._process.send_signal(LEAVE)

    def terminate(self) -> None:
        """Let the launcher end its ranks, saved or not, and what else it has started."""
        self._process.terminate()

    def kill(self) -> None:
        """End whatever is left of the launch, at once: on this node, and a step of Slurm's on all."""
        if self._process.poll() is None:
            self._process.send_signal(warden.KILL)
            try:
                self._process.wait(_KILLED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, self._mark, grace_s=0.0)
        if self._process.wait() < 0 and self._step:
            slurm.cancel_step(self._step)
            self._step = ""
        if self._process.returncode < 0 and self._cancel:
            slurm.run_command(*self._cancel)
            self._cancel = ()

    def close(self) -> list[dict[str, Any]]:
        """Make sure that it is gone, and return the control messages not read before."""
        self.kill()
        messages: list[dict[str, Any]] = []
        while not self.is_silent:
            before = self._unread
            found = self.read()
            messages += found
            if not found and self._unread == before:
                break  # a process that we may not see or kill keeps the pipe open
        self.bound_log()
        os.close(self.stdout)
        os.close(self._stdin)
        self._log.close()
        return messages

    def _sort(self, line: bytes) -> dict[str, Any] | None:
        """Return the control message that a line ends with; the rest of the line is logged."""
        other, separator, text = line.rpartition(RECORD_SEPARATOR)
        message = None
        if separator:
            try:
                message = json.loads(text)
            except ValueError:
                other = line
        else:
            other = text
        if other:
            with contextlib.suppress(
                OSError
            ):  # a full disk is noticed by its ranks, and when they have ended
                self._log.write(other + b"\n")
        return message if isinstance(message, dict) else None


def _begin(starter: int, umask: int) -> None:
    """Prepare the process of a launch, before it becomes the launcher."""
    os.umask(umask)
    prctl.die_with_parent(starter, LEAVE)


def _run_before(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    with log.open("ab") as file, contextlib.suppress(subprocess.TimeoutExpired, OSError):
        subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            timeout=_BEFORE_TIMEOUT_S,
            check=False,
        )


def _environment(added: Mapping[str, str], mark: str) -> dict[str, str]:
    environment = {**os.environ, **added, orphan_reaper.JOB_VARIABLE: mark}
    # Last: a launcher of the site comes before one that was installed with this interpreter.
    path = environment.get("PATH", os.defpath)
    return environment | {"PATH": f"{path}{os.pathsep}{Path(sys.executable).parent}"}


def _pipe(file: Any) -> int:  # a pipe of Popen, whose type says that it might be None
    """Return a descriptor of our own that never blocks; closing the file would end the launch."""
    descriptor = os.dup(file.fileno())
    file.close()
    os.set_blocking(descriptor, False)
    return descriptor
