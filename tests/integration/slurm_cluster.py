"""A real Slurm on one machine: virtual nodes whose GPUs are links to /dev/null; nothing outside its folder.

Own configuration, munge key, sockets and ports: several clusters, and a Slurm of the machine's own,
do not meet. Node names do not resolve.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from backend_tools import eventually
from ports import free_ports

from parsl_rasda.agent import orphan_reaper

START_S = 60.0
COMMAND_S = 30.0
_DAEMON_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

CONFIGURATION = """\
ClusterName=rasda
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SwitchType=switch/none
KillWait=3
CompleteWait=0
OverTimeLimit=0
InactiveLimit=0
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=10
JobRequeue=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=32 ThreadsPerCore=1 RealMemory=16000 State=UNKNOWN"
)


class SlurmCluster:
    """Starts on entry, ends on exit with everything that its jobs have started."""

    def __init__(self, nodes: int = 4, gpus: int | Sequence[int] = 4) -> None:
        """Prepare a cluster.

        Args:
            nodes: How many.
            gpus: Of every node, or of each; 0: not handed out by Slurm.
        """
        self.nodes, self.gpus = nodes, [gpus] * nodes if isinstance(gpus, int) else list(gpus)
        # A socket's path may have a hundred bytes, fewer than folders of tests use up.
        self.folder = Path(tempfile.mkdtemp(prefix="rasda-slurm-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What commands of Slurm need to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self._daemons.values():
            daemon.send_signal(signal.SIGTERM)
        orphan_reaper.end_marked("SLURM_CONF", self.environment["SLURM_CONF"], grace_s=2.0)
        for daemon in self._daemons.values():
            daemon.wait()
        self._end_steps()
        shutil.rmtree(self.folder)

    def _end_steps(self) -> None:
        """End what looks after steps: its title overwrites its environment, and it may outlive its slurmd."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                files = process.open_files() if process.name() == "slurmstepd" else []
                if any(file.path.startswith(f"{self.folder}/") for file in files):
                    process.kill()

    def run(self, *argv: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Return what a command of Slurm's says."""
        done = subprocess.run(
            argv,
            env={**os.environ, **self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{argv}: {done.stderr}"
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Return the ids of jobs, oldest first: all, or those in certain states."""
        of = (f"--states={','.join(states)}",) if states else ("--states=all",)
        return sorted(self.run("squeue", "--noheader", "--format=%A", *of).split(), key=int)

    def cancel_all(self) -> None:
        """Cancel what runs or waits, and return when all of it is gone."""
        for job in self.jobs("PENDING,RUNNING,COMPLETING"):
            self.run("scancel", job, check=False)
        self._until(lambda: not self.jobs("PENDING,RUNNING,COMPLETING"), "jobs end")

    def kill_daemon(self, node: str) -> None:
        """Let a node fail: its slurmd dies at once; Slurm notices after SlurmdTimeout."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def drain(self, node: str) -> None:
        """Let a node take no further job; what runs there runs on."""
        self.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=service")

    def revive_nodes(self) -> None:
        """Start the daemons of failed nodes again, and take drained ones back."""
        for i in range(self.nodes):
            if f"n{i}" not in self._daemons:
                self._start_node(f"n{i}")
        drained = self.run("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split()
        for node in dict.fromkeys(drained):
            self.run("scontrol", "update", f"nodename={node}", "state=resume")

    def revive(self) -> None:
        """Bring back every node, cancel what is left, and wait until all are idle."""
        self.revive_nodes()
        self.cancel_all()
        self._until(self._all_idle, "nodes become idle")

    def _start(self) -> None:
        host, port = socket.gethostname().partition(".")[0], free_ports(2 + len(self.gpus))[0]
        for name in ("state", "spool", "dev"):
            (self.folder / name).mkdir()
        gres, nodes = [], []
        for i, gpus in enumerate(self.gpus):
            asked = f" Gres=gpu:{gpus}" if gpus else ""
            nodes.append(NODE.format(i=i, host=host, port=port + 2 + i) + asked)
            devices = self.folder / "dev" / f"n{i}"
            devices.mkdir()
            for gpu in range(gpus):
                (devices / f"nvidia{gpu}").symlink_to("/dev/null")
            if gpus:
                gres.append(f"NodeName=n{i} Name=gpu File={devices}/nvidia[0-{gpus - 1}]\n")
        (self.folder / "gres.conf").write_text("".join(gres))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                folder=self.folder,
                port=port,
                other_port=port + 1,
                nodes="\n".join(nodes),
            )
        )
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        at = self.folder
        self._begin(
            "munged",
            *("munged", "--force", "--foreground", f"--key-file={key}", f"--socket={at}/munge.sock"),
            *(f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed"),
        )
        self._until((at / "munge.sock").exists, "munged starts")
        self._begin("slurmctld", "slurmctld", "-D", "-i")
        for i in range(self.nodes):
            self._start_node(f"n{i}")
        self._until(self._all_idle, "nodes become idle")

    def _start_node(self, name: str) -> None:
        self._begin(name, "slurmd", "-D", "-N", name)

    def _begin(self, name: str, *argv: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                argv,
                env={**os.environ, **self.environment, "PATH": _DAEMON_PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _all_idle(self) -> bool:
        found = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N %T", check=False)
        return sum(line.split()[-1] == "idle" for line in found.splitlines()) == self.nodes

    def _until(self, is_so: Callable[[], Any], what: str) -> None:
        eventually(is_so, f"{what}; see {self.folder}", START_S)
