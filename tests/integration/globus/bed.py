"""Globus Compute on one machine: real endpoints and a real RabbitMQ, and a stand-in for the hosted service.

Everything listens on loopback, on free ports, and lives in one folder. Every process carries the mark
`MARK`, by which what is left is found and ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from parsl_rasda.agent import orphan_reaper
from tests.integration.backend_tools import eventually
from tests.integration.ports import free_ports

MARK = "RASDA_GLOBUS_BED"
START_S = 120.0
HEARTBEAT_S = 2
STUCK_S = 5.0  # a fork is another program within milliseconds
REPOSITORY = Path(__file__).parents[3]
TEMPLATE = REPOSITORY / "site_configs" / "globus_endpoint"
VENV_BIN = Path(sys.executable).parent
STAND_IN = Path(__file__).parent / "stand_in.py"
RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # Debian's wrapper on PATH changes the user and the paths

RABBIT_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users = none
default_user = bed
default_pass = bed
log.console = true
log.console.level = warning
log.file = false
"""


class GlobusBed:
    """Starts on entry; on exit nothing is left."""

    def __init__(self, *sites: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rasda-globus-"))
        self.endpoints = {site: str(uuid.uuid4()) for site in sites}
        self._rabbit_port, self._dist_port, self._epmd_port = free_ports(3)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._is_closing = threading.Event()
        self._watch = threading.Thread(target=self._end_stuck_forks, name="globus-bed", daemon=True)

    @property
    def url(self) -> str:
        """Where the stand-in listens."""
        return f"http://127.0.0.1:{(self.folder / 'port').read_text()}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of the stand-in needs: it is reached as the proxy of a host that need not exist."""
        return {
            "http_proxy": self.url,
            "no_proxy": "",
            "GLOBUS_SDK_ENVIRONMENT": "local",
            "GLOBUS_SDK_SERVICE_URL_AUTH": f"{self.url}/",
            "GLOBUS_COMPUTE_CLIENT_ID": "22222222-2222-4222-8222-222222222222",
            "GLOBUS_COMPUTE_CLIENT_SECRET": "not-a-secret",
            "GLOBUS_COMPUTE_USER_DIR": str(self.folder / "client"),
        }

    def __enter__(self) -> Self:
        try:
            self.start_broker(wait=True)
            amqp = f"amqp://bed:bed@127.0.0.1:{self._rabbit_port}/%2F"
            words = (sys.executable, str(STAND_IN), "--amqp", amqp, "--port-file", str(self.folder / "port"))
            self._start("stand-in", *words, PYTHONPATH=str(REPOSITORY))
            self._await("the stand-in", (self.folder / "port").exists)
            for site in self.endpoints:
                self.start_endpoint(site)
            self.await_endpoints()
            self._watch.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing.set()
        if self._watch.ident is not None:
            self._watch.join()
        for site in self.endpoints:  # first, so that nobody starts anything any more
            self.kill_endpoint(site)
            for pid in self._forks(site):
                kill(pid)
        for _ in range(2):  # epmd forks away while we look; nobody needs what they would save
            orphan_reaper.end_marked(MARK, str(self.folder), grace_s=0.0)
            for pid in self._interchanges():  # orphans of user endpoints that were killed
                kill(pid)
        eventually(lambda: not self._interchanges())
        for process in self._processes.values():
            process.wait()
        assert not self.processes(), "something was left"
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Return the pids of everything that belongs to the bed."""
        marked = [process.pid for process in orphan_reaper.marked(MARK, str(self.folder))]
        titled = [pid for site in self.endpoints for pid in (*self.user_endpoint(site), *self._forks(site))]
        return [*marked, *titled, *self._interchanges()]

    def _interchanges(self) -> list[int]:
        """Return Parsl's interchanges: their titles overwrite their marks, but they write into the folder."""
        titled = (pid for pid in process_ids() if command_line(pid).startswith("parsl: HTEX interchange"))
        return [pid for pid in titled if any(str(self.folder) in place for place in open_files(pid))]

    # --------------------------------------------------------------------------------- the broker

    def start_broker(self, *, wait: bool) -> None:
        """Start RabbitMQ, with what it had when it was stopped."""
        rabbit = self.folder / "rabbit"
        rabbit.mkdir(exist_ok=True)
        (rabbit / "rabbitmq.conf").write_text(RABBIT_CONFIGURATION.format(port=self._rabbit_port))
        (rabbit / "plugins").write_text("[].")
        erlang = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +S 1:1"
        environment = {
            "HOME": str(rabbit),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": "bed@localhost",
            "RABBITMQ_CONFIG_FILE": str(rabbit / "rabbitmq"),
            "RABBITMQ_MNESIA_BASE": str(rabbit / "mnesia"),
            "RABBITMQ_LOG_BASE": str(rabbit / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(rabbit / "plugins"),
            "RABBITMQ_PID_FILE": str(rabbit / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(rabbit / "none"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
        }
        self._start("rabbit", RABBIT, **environment)
        if wait:
            self._await("RabbitMQ", lambda: is_open(self._rabbit_port))

    def stop_broker(self) -> None:
        """Let RabbitMQ end as for a restart of its machine; what it holds is on disk."""
        self._signal("rabbit", signal.SIGTERM)
        self._processes.pop("rabbit").wait(START_S)

    # -------------------------------------------------------------------------------- the endpoints

    def online(self) -> set[str]:
        """Return the sites whose endpoints the service hears of."""
        names = self._ask("online")
        return {site for site, endpoint in self.endpoints.items() if endpoint in names}

    def await_endpoints(self) -> None:
        """Wait until all endpoints are online; raise if one cannot be."""
        self._await("the endpoints", lambda: self.online() == set(self.endpoints))

    def waiting(self) -> int:
        """Return how many tasks the service has no result for."""
        return int(self._ask("waiting"))

    def kept(self) -> int:
        """Return how many results wait to be fetched, or have been and would still be there."""
        return int(self._ask("kept"))

    def requests(self) -> dict[str, int]:
        """Return how many requests the service has served, and refused for each reason (`limits.Gate`)."""
        return dict(self._ask("requests"))

    @contextmanager
    def limits(self, **changes: float) -> Iterator[None]:
        """Let the service have other limits for a while (`limits.Limits`)."""
        before = self._ask("limits", changes)
        try:
            yield
        finally:
            self._ask("limits", before)

    def _ask(self, what: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/{what}", data) as answer:
            return json.load(answer)

    def start_endpoint(self, site: str) -> None:
        """Start an endpoint from the template that is shipped, or start it again."""
        folder = self.folder / site / site
        if not folder.exists():
            shutil.copytree(TEMPLATE, folder)
            settings = {"display_name": site, "heartbeat_period": HEARTBEAT_S, "email": "nobody@example.org"}
            (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "local_compute_services": True}))
            path = f"{VENV_BIN}:/usr/local/bin:/usr/bin:/bin"
            known = {"PATH": path, MARK: str(self.folder), "PYTHONPATH": str(REPOSITORY)}
            (folder / "user_environment.yaml").write_text(
                yaml.safe_dump({**known, "GLOBUS_COMPUTE_USER_DIR": str(folder.parent)})
            )
            identity = {"endpoint_id": self.endpoints[site]}
            (folder / "endpoint.json").write_text(json.dumps(identity))
        environment = {**self.environment, "GLOBUS_COMPUTE_USER_DIR": str(folder.parent)}
        command = (str(VENV_BIN / "globus-compute-endpoint"), "start", site)
        self._start(site, *command, **environment)

    @contextmanager
    def environment_of(self, site: str, variables: Mapping[str, str]) -> Iterator[None]:
        """Let user endpoints that start at a site have more variables for a while."""
        path = self.folder / site / site / "user_environment.yaml"
        before = path.read_text()
        path.write_text(yaml.safe_dump({**yaml.safe_load(before), **variables}))
        try:
            yield
        finally:
            path.write_text(before)

    def kill_endpoint(self, site: str) -> None:
        """Kill an endpoint and its user endpoint; managers and launches find out by themselves."""
        process = self._processes.pop(site, None)
        if process is not None:
            process.kill()
            process.wait()
        # An endpoint does not start while a file of another one is younger than three heartbeats.
        (self.folder / site / site / "daemon.pid").unlink(missing_ok=True)
        self.kill_user_endpoint(site)

    def kill_user_endpoint(self, site: str) -> int:
        """Kill the process that takes tasks for a site; returns how many there were."""
        found = self.user_endpoint(site)
        for pid in found:
            kill(pid)
        eventually(lambda: not self.user_endpoint(site))
        return len(found)

    def kill_pilot(self, site: str) -> int:
        """Kill what manages the workers of a site, as the end of its batch job does; returns how many."""
        folder = f"/{site}/uep.{self.endpoints[site]}"
        marked = [process.pid for process in orphan_reaper.marked(MARK, str(self.folder))]
        words = {pid: command_line(pid) for pid in marked}
        found = [pid for pid in marked if "parsl-rasda-workers" in words[pid] and folder in words[pid]]
        for pid in found:
            kill(pid)
        return len(found)

    def user_endpoint(self, site: str) -> list[int]:
        """Return the processes that take tasks for a site: they are known by their titles alone."""
        title = f"uep.{self.endpoints[site]}"
        return [
            pid
            for pid in process_ids()
            if command_line(pid).startswith("Globus") and title in command_line(pid)
        ]

    def _forks(self, site: str) -> list[int]:
        """Return the forks of an endpoint that have not become its user endpoint yet: they have its title."""
        manager, endpoint = self._processes.get(site), self.endpoints[site]
        titles = {pid: command_line(pid) for pid in process_ids() if manager is None or pid != manager.pid}
        return [
            pid for pid, t in titles.items() if t.startswith("Globus") and endpoint in t and "uep." not in t
        ]

    def _end_stuck_forks(self) -> None:
        """End forks that stay so: the endpoint takes them for user endpoints, and starts none.

        Globus Compute 4 forks beside threads that log. Its fork may find the lock of a handler taken, by
        nobody, and wait for it for ever.
        """
        since: dict[int, float] = {}
        while not self._is_closing.wait(1.0):
            now = time.monotonic()
            since = {pid: since.get(pid, now) for site in self.endpoints for pid in self._forks(site)}
            for pid in [pid for pid, first in since.items() if now - first > STUCK_S]:
                kill(pid)

    def site_file(self, site: str, work_dir: Path, **fields: Any) -> str:
        """Return a site file for an endpoint of the bed."""
        options = {
            "batch_system": "local",
            "trials": 4,
            "heartbeat_s": HEARTBEAT_S,
            "idle_heartbeats": 0,
            "worker_init": f"export PYTHONPATH={REPOSITORY} OMP_NUM_THREADS=1 {MARK}={self.folder}",
        }
        declared = {
            "name": site,
            "endpoint_id": self.endpoints[site],
            "user_endpoint_config": options,
            "gpus_per_node": 2,
            "accelerator": "none",
            "mpi_launcher": "process",
            "work_dir": str(work_dir),
            "heartbeat_threshold": 6,
        }
        return yaml.safe_dump({**declared, **fields})

    # ------------------------------------------------------------------------------------- processes

    def _start(self, name: str, *command: str, **environment: str) -> None:
        path = os.pathsep.join((str(VENV_BIN), os.environ.get("PATH", os.defpath)))
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env={**os.environ, "PATH": path, **environment, MARK: str(self.folder)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def _await(self, what: str, is_so: Callable[[], bool]) -> None:
        def has_started() -> bool:
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended: {(self.folder / f'{name}.log').read_text()}"
            return is_so()

        eventually(has_started, f"{what} starts", START_S)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def process_ids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def open_files(pid: int) -> list[str]:
    try:
        return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
