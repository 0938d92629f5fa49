"""The parent of a launch: it leaves nothing behind, whoever else is left.

    python -S -E -s warden.py AGENT_PID LAUNCHER...

It stands between the agent and the launcher. It passes signals on and ends as the launcher ends. Orphans of
the launch become its children, also daemons in sessions of their own and with an empty environment. It kills
them when the launcher has ended. If the agent dies, nobody else watches over ranks that hang: the warden asks
the launcher to leave, and ends it by force when it does not.

Fork servers are spared, and so are the ranks below them: each has a supervisor, which ends it as soon as its
client under the launcher has ended. The warden starts in milliseconds: standard library only, like that
client, with copies of some constants that a unit test compares with the originals.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time

TYPE_CHECKING = False  # typing takes as long to import as all the rest
if TYPE_CHECKING:
    from typing import NoReturn

PR_SET_PDEATHSIG = 1  # as in `prctl`
PR_SET_CHILD_SUBREAPER = 36
LEAVE = signal.SIGUSR1  # as in `launch`
KILL = signal.SIGALRM  # asks the warden to kill all that there is, and to end
GRACE_S = 10.0  # for ranks to save, once the agent has died; as in `job`
TERM_TO_KILL_S = 5.0
GONE_WITHIN_S = 5.0  # after SIGKILL; a process in an uninterruptible wait may need longer
POLL_S = 1.0  # looks whether the agent lives
REAP_S = 0.005
UNSTARTED = "unstarted"  # says on the control channel that there is no such launcher
SERVER = b"parsl_rasda.runtime.process.forkserver.server"

_PASSED_ON = {signal.SIGTERM, LEAVE, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP}
_AWAITED = {*_PASSED_ON, KILL, signal.SIGCHLD}


class Warden:
    """Watches over one launcher."""

    def __init__(self, agent: int, argv: list[str]) -> None:
        """Start it. The signals are blocked before, so that none is lost."""
        self._agent = agent
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        warden = os.getpid()
        self._launcher = os.fork()
        if self._launcher == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
                signal.signal(number, signal.SIG_DFL)
            libc.prctl(PR_SET_PDEATHSIG, LEAVE)
            if os.getppid() != warden:
                os._exit(1)
            _become(argv)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)  # the pipes are the launcher's alone
        os.close(null)
        self._force_at: list[tuple[float, int]] = []

    def watch(self) -> int:
        """Return the launcher's status, as in `subprocess`, when it has ended."""
        while True:
            found = signal.sigtimedwait(_AWAITED, POLL_S)
            if found is not None and found.si_signo == KILL:
                self._send(signal.SIGKILL)
            elif found is not None and found.si_signo != signal.SIGCHLD:
                self._send(found.si_signo)
            status = self._reap()
            if status is not None:
                return status
            self._check_agent()

    def end_the_rest(self) -> None:
        """Kill what the launcher has left, and what that leaves in turn."""
        give_up = time.monotonic() + GONE_WITHIN_S
        while time.monotonic() < give_up:
            self._reap()
            left = [child for child in _children() if not _is_server(child)]
            if not left:
                return
            for child in left:
                _kill(child, signal.SIGKILL)
            time.sleep(REAP_S)

    def _check_agent(self) -> None:
        now = time.monotonic()
        if not self._force_at and os.getppid() != self._agent:
            self._send(LEAVE)
            kill_at = now + GRACE_S + TERM_TO_KILL_S
            self._force_at = [(now + GRACE_S, signal.SIGTERM), (kill_at, signal.SIGKILL)]
        for when, number in self._force_at:
            if now >= when:
                self._send(number)
        if len(self._force_at) > 1 and now >= self._force_at[0][0]:
            del self._force_at[0]

    def _send(self, number: int) -> None:
        _kill(self._launcher, number)

    def _reap(self) -> int | None:
        """Forget children that have ended; return the launcher's status if it is among them."""
        found = None
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._launcher:
                    found = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return found
        return found


def main(arguments: list[str]) -> NoReturn:
    """Start a launcher, stay until nothing of it is left, and end as it has ended."""
    agent, argv = int(arguments[0]), arguments[1:]
    if os.getppid() != agent:
        os._exit(1)
    warden = Warden(agent, argv)
    status = warden.watch()
    warden.end_the_rest()
    _leave_as(status)


def _become(argv: list[str]) -> NoReturn:
    os.setsid()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        number = error.errno or errno.ENOENT
        os.write(1, b"\x1e" + json.dumps({"op": UNSTARTED, "errno": number}).encode() + b"\n")
        os._exit(127)


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children", encoding="utf-8") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel without that file
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _parent(pid) == me]


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_server(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return SERVER in file.read().split(b"\0")
    except OSError:
        return False


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # it has ended, or is another user's
        return


def _leave_as(status: int) -> NoReturn:
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    os._exit(status & 255)


if __name__ == "__main__":
    main(sys.argv[1:])
