"""Ranks that are forked are like ranks that are started, and whoever dies takes the rest along."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from backend_tools import eventually
from forked_ranks import Node, described, family_of, gone, parent_of
from rank_launch import (
    finished,
    is_alive,
    metrics_of,
    rank_command,
    report_of,
    written_order,
)

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.backends.parsl.rank_server import RankServer
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors
from parsl_rasda.runtime.process.forkserver import client
from parsl_rasda.types import Outcome

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def node():
    with Node() as it:
        yield it


def broken_torch(folder):
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so is missing')")
    return f"{folder}:{os.environ.get('PYTHONPATH', '')}"


# ---------------------------------------------------------------------------------- like a plain start


def test_ranks_that_race_to_an_empty_node_start_one_server(tmp_path) -> None:
    with Node() as node:
        orders = [node.order(tmp_path / str(i)) for i in range(6)]
        launches = [node.start(order) for order in orders]
        assert [launch.wait(90) for launch in launches] == [0] * 6
        assert all(described(order)["forked"] for order in orders)
        waited_s = [float(described(order)["environment"]["PARSL_RASDA_FORKED"]) for order in orders]
        assert min(waited_s) > 0.3, "torch was loaded once, and they know how long they waited for it"
        later = node.order(tmp_path / "later")
        assert node.finished(later)[0] == 0
        assert float(described(later)["environment"]["PARSL_RASDA_FORKED"]) == 0.0
        assert len({parent_of(pid) for pid in node.servers()}) == len(node.servers()) == 1


def test_a_controller_has_torch_loaded_for_the_ranks_of_a_local_pilot(tmp_path, monkeypatch) -> None:
    with Node() as node:
        for name in {*os.environ} - {*node.environment}:
            monkeypatch.delenv(name)
        for name, value in node.environment.items():
            monkeypatch.setenv(name, value)
        early = RankServer({"OMP_NUM_THREADS": "2"}, node.mark)
        early.ensure()
        early.close()
        (server,) = node.servers()
        early.ensure()
        node.environment |= {"OMP_NUM_THREADS": "2"}
        order = node.order(tmp_path)
        assert node.finished(order) == (0, "")
        assert described(order)["forked"]
        early.close()
        assert node.servers() == [server]


def test_ranks_of_logical_slots_are_forked_where_no_torch_was_loaded(tmp_path) -> None:
    with Node(**{client.TORCH_VARIABLE: "0"}) as node:
        order = node.order(tmp_path, accelerator="none")
        assert node.finished(order) == (0, "")
        found = described(order)
        assert (found["forked"], found["torch"]) == (True, False)


def test_a_forked_rank_has_what_it_would_have_been_started_with(node, tmp_path) -> None:
    order = node.order(tmp_path / "order", config={"read": True})
    (tmp_path / "here").mkdir()
    with (tmp_path / "input").open("wb") as file:
        file.write(b"over stdin")
    status, log = node.finished(
        order,
        cwd=tmp_path / "here",
        umask=0o27,
        stdin=(tmp_path / "input").open("rb"),
        prefix=("taskset", "-c", "1", "nice", "-n", "3", "prlimit", "--nofile=500:600"),
    )
    assert (status, log) == (0, "")
    found = described(order)
    assert found["forked"]
    assert found["torch"], "it was there from the start"
    assert found["directory"] == str(tmp_path / "here")
    assert (found["umask"], found["cpus"], found["files"]) == (0o27, [1], [500, 600])
    assert (found["priority"], found["stdin"]) == (3, "over stdin")
    names = {*found["environment"]} - {"PARSL_RASDA_FORKED", "LC_CTYPE"}
    assert {n: found["environment"][n] for n in names if n in node.environment} == {
        n: v for n, v in node.environment.items() if n in names
    }


def test_a_forked_launch_trains_to_the_same_bits_as_a_started_one(node, tmp_path) -> None:
    forked = written_order(tmp_path / "forked", world_size=2, until=2)
    assert node.finished(forked) == (0, "")
    plain = written_order(tmp_path / "plain", world_size=2, until=2)
    with Node(**{client.DIRECTORY_VARIABLE: "/proc"}) as elsewhere:  # where no folder can be made
        status, log = elsewhere.finished(plain)
    assert (status, "plain start" in log) == (0, True)
    assert metrics_of(forked) == metrics_of(plain)
    one, two = (read_tensors(Path(report_of(order).checkpoint.path)) for order in (forked, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_whatever_a_function_imports_and_draws_is_the_same_in_a_started_rank(node, tmp_path) -> None:
    orders = [written_order(tmp_path / str(i), python="rank_functions:draw_late", until=1) for i in range(3)]
    assert node.finished(orders[0]) == (0, "")
    for order in orders[1:]:
        assert finished(rank_command(order))[0] == 0
    assert metrics_of(orders[0]) == metrics_of(orders[1]) == metrics_of(orders[2])


@pytest.mark.parametrize(
    ("act", "status"),
    [
        ({}, 0),
        ({"raise": True}, 1),
        ({"exit": 7}, 7),
        ({"signal": signal.SIGABRT}, -signal.SIGABRT),
        ({"signal": signal.SIGKILL}, -signal.SIGKILL),
        ({"signal": signal.SIGSEGV}, -signal.SIGSEGV),
    ],
)
def test_the_client_ends_as_its_rank_did(node, tmp_path, act, status) -> None:
    order = node.order(tmp_path, config={"act": act})
    assert node.finished(order)[0] == status
    assert described(order)["forked"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_ranks_through_the_launcher(node, tmp_path, number) -> None:
    order = node.order(tmp_path, world_size=2, config={"epoch_s": 600})
    launch = node.start(order)
    families = [family_of(order, rank) for rank in (0, 1)]
    launch.send_signal(number)
    eventually((tmp_path / "report.json").exists, "rank 0 reports")
    report = report_of(order)
    assert (report.outcome, report.cause) == (Outcome.PREEMPTED, signal.Signals(number).name)
    launch.wait(30)
    eventually(lambda: all(gone(family.values()) for family in families), "all are gone")


# ------------------------------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("victim", ["rank", "supervisor", "client", "launcher"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_whoever_is_killed_takes_the_launch_along_and_no_other(node, tmp_path, victim, world_size) -> None:
    order = node.order(tmp_path / "it", world_size=world_size, config={"epoch_s": 600, "helpers": 2})
    neighbour = node.order(tmp_path / "neighbour", config={"epoch_s": 1.0})
    launch, beside = node.start(order), node.start(neighbour)
    families = [family_of(order, rank) for rank in range(world_size)]
    family_of(neighbour)
    pids = [pid for family in families for pid in family.values()]
    pids += [pid for rank in range(world_size) for pid in described(order, rank)["helpers"]]
    os.kill(launch.pid if victim == "launcher" else families[-1][victim], signal.SIGKILL)
    assert launch.wait(20) != 0
    if victim != "launcher" or world_size == 1:
        eventually(lambda: gone(families[-1].values()), "its family is gone")
    orphan_reaper.end_marked(
        orphan_reaper.JOB_VARIABLE, launch.mark, grace_s=0.0
    )  # as runners do; hydra may linger
    assert gone(pids), [p for p in pids if is_alive(p)]
    assert beside.wait(30) == 0
    assert len(node.servers()) == 1


@pytest.fixture(scope="module")
def openmpi(need):
    """The words of an Open MPI launch of two ranks."""
    folder = Path(os.environ.get("RASDA_OPENMPI", Path(__file__).parents[2] / ".venv-openmpi" / "bin"))
    need("openmpi", also_missing="" if (folder / "prterun").exists() else f"prterun in {folder}")
    words = ("--allow-run-as-root", "--host", "localhost:2", "-n", "2", "--bind-to", "none")
    return (str(folder / "mpiexec"), *words)


@pytest.fixture(scope="module")
def its_node():
    """A node of Open MPI's own: its `mpiexec` adds to the environment, so a server of its own serves it."""
    with Node() as it:
        yield it


@pytest.mark.parametrize("victim", [None, "rank", "supervisor", "client", "launcher"])
def test_under_open_mpi_too_nothing_outlives_what_was_killed(its_node, openmpi, tmp_path, victim) -> None:
    node = its_node
    order = node.order(tmp_path, world_size=2, config={"epoch_s": 600 if victim else 0})
    launch = node.start(order, launcher=openmpi)
    if victim is None:
        assert launch.wait(60) == 0, (tmp_path / "log.txt").read_text()
        assert all(described(order, rank)["forked"] for rank in (0, 1))
        return
    families = [family_of(order, rank) for rank in (0, 1)]
    os.kill(launch.pid if victim == "launcher" else families[1][victim], signal.SIGKILL)
    assert launch.wait(30) != 0
    eventually(lambda: all(gone(family.values()) for family in families), "all are gone, by themselves")


def test_ranks_outlive_their_server_and_the_next_launch_starts_another(node, tmp_path) -> None:
    order = node.order(tmp_path / "before", config={"epoch_s": 2.0})
    launch = node.start(order)
    family = family_of(order)
    (server,) = node.servers()
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not is_alive(server), "the server is gone")
    assert is_alive(family["rank"])
    later = node.order(tmp_path / "after")
    assert node.finished(later) == (0, "")
    assert described(later)["forked"]
    assert node.servers() != [server]
    assert launch.wait(60) == 0


def test_a_server_killed_while_it_loads_torch_loses_nobody(tmp_path) -> None:
    with Node() as node:
        orders = [node.order(tmp_path / str(i)) for i in range(3)]
        launches = [node.start(order) for order in orders]
        eventually(lambda: any(node.sockets.glob("*.sock")), "the server listens")
        for pid in node.servers():
            os.kill(pid, signal.SIGKILL)
        assert [launch.wait(90) for launch in launches] == [0] * 3
        assert all(report_of(order).outcome is Outcome.REACHED for order in orders)


def test_the_mark_of_a_job_ends_its_ranks_and_leaves_the_server(node, tmp_path) -> None:
    order = node.order(tmp_path, world_size=2, config={"epoch_s": 600})
    launch = node.start(order)
    families = [family_of(order, rank) for rank in (0, 1)]
    marked = {p.pid for p in orphan_reaper.marked(orphan_reaper.JOB_VARIABLE, launch.mark)}
    assert {pid for family in families for pid in family.values()} <= marked
    servers = node.servers()
    assert not marked & {*servers}
    orphan_reaper.end_marked(orphan_reaper.JOB_VARIABLE, launch.mark, grace_s=0.0)
    assert all(gone(family.values()) for family in families)
    launch.wait(10)
    assert node.servers() == servers


def test_the_mark_of_a_run_ends_its_servers_and_leaves_no_file(tmp_path) -> None:
    with Node() as node:
        order = node.order(tmp_path, config={"epoch_s": 600})
        launch = node.start(order)
        family_of(order)
        orphan_reaper.end_marked(orphan_reaper.RUN_VARIABLE, node.mark, grace_s=5.0)
        launch.wait(10)
        assert node.processes() == []
        assert list(node.sockets.iterdir()) == []


def test_what_a_killed_server_left_is_swept_by_the_next(tmp_path) -> None:
    with Node() as node:
        assert node.finished(node.order(tmp_path / "first"))[0] == 0
        (server,) = node.servers()
        os.kill(server, signal.SIGKILL)
        eventually(lambda: not is_alive(server), "the server is gone")
        (left,) = node.sockets.glob("*.sock")
        node.environment["OMP_SCHEDULE"] = "static"  # another environment, another server
        assert node.finished(node.order(tmp_path / "second"))[0] == 0
        (found,) = node.sockets.glob("*.sock")
        assert found.name != left.name
        assert len(list(node.sockets.iterdir())) == 2


# -------------------------------------------------------------------------------------- how long it lives


def test_a_server_leaves_when_it_is_idle_but_never_while_ranks_live(tmp_path) -> None:
    with Node(idle_s=0.3) as node:
        order = node.order(tmp_path, config={"epoch_s": 2.0})
        launch = node.start(order)
        family_of(order)
        (server,) = node.servers()
        assert launch.wait(60) == 0
        assert report_of(order).at - (tmp_path / "scratch").stat().st_mtime > 1.5
        eventually(lambda: not is_alive(server), "it leaves")
        assert list(node.sockets.iterdir()) == []


def test_no_launch_is_lost_around_the_idle_time_out(tmp_path) -> None:
    with Node(idle_s=0.2) as node:
        for i in range(4):
            order = node.order(tmp_path / str(i))
            status, _ = node.finished(order)
            assert (status, report_of(order).outcome) == (0, Outcome.REACHED)
            time.sleep(0.15 + 0.03 * i)  # from before the time-out to behind it


# --------------------------------------------------------------------------------- where it cannot serve


def test_where_torch_cannot_be_imported_ranks_start_plainly_and_say_why_once_tried(tmp_path) -> None:
    with Node(PYTHONPATH=broken_torch(tmp_path / "broken") + ":" + Node().environment["PYTHONPATH"]) as node:
        for name in ("first", "second"):
            order = node.order(tmp_path / name, accelerator="none")
            status, log = node.finished(order)
            assert (status, described(order)["forked"]) == (0, False)
            assert "plain start, without the fork server: it cannot import torch" in log
            assert "libtorch_cpu.so is missing" in log
        assert node.servers() == []
        assert [path.suffix for path in node.sockets.iterdir()] == [".refused"]


def test_a_folder_that_others_could_enter_is_not_used(tmp_path) -> None:
    with Node() as node:
        node.sockets.chmod(0o755)
        order = node.order(tmp_path / "order", accelerator="none")
        status, log = node.finished(order)
        assert (status, described(order)["forked"]) == (0, False)
        assert "is not a folder that only this user may enter" in log
        assert node.servers() == []


def test_its_socket_is_for_its_user_alone(node, tmp_path) -> None:
    assert node.finished(node.order(tmp_path))[0] == 0
    (path,) = node.sockets.glob("*.sock")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_stranger_who_says_nothing_does_no_harm(node, tmp_path) -> None:
    assert node.finished(node.order(tmp_path / "before"))[0] == 0
    (path,) = node.sockets.glob("*.sock")
    silent = client.connection(str(path))
    assert node.finished(node.order(tmp_path / "after")) == (0, "")
    silent.close()


def test_helpers_that_read_ahead_die_with_their_rank(node, tmp_path) -> None:
    at = {"epoch": 0, "batch": 1, "what": "wait for a signal"}
    order = written_order(tmp_path, config={"lr": 0.02, "at": at, "workers": 2})
    launch = node.start(order)
    eventually((tmp_path / "scratch/waiting-0").exists, "it trains")
    rank = int((tmp_path / "scratch/pid-0").read_text())
    children = [
        int(pid) for pid in Path(f"/proc/{rank}/task/{rank}/children").read_text(encoding="utf-8").split()
    ]
    assert len(children) == 2
    os.kill(rank, signal.SIGKILL)
    assert launch.wait(20) == -signal.SIGKILL
    assert gone([rank, *children])
