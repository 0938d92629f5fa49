from __future__ import annotations

import inspect
import threading
from concurrent.futures import Future
from contextlib import ExitStack, closing
from typing import Any
from uuid import UUID

import globus_compute_sdk.sdk.executor as sdk
import pytest
import requests
from backend_tools import eventually
from globus_compute_sdk import Client as SDKClient
from globus_compute_sdk.errors import MaxResultSizeExceeded, TaskExecutionFailed
from globus_sdk import GlobusAPIError, NetworkError
from hypothesis import given
from hypothesis import strategies as st
from parsl.executors.high_throughput.errors import ManagerLost

from parsl_rasda.backends.globus import client, rate_limited_client
from parsl_rasda.backends.globus.client import (
    EndpointClient,
    PilotLostError,
    RefusedError,
    TooLargeError,
    UnreachableError,
    end_watchers,
)
from parsl_rasda.backends.globus.rate_limited_client import MOST, WINDOW_S, Pacer
from parsl_rasda.study.sites import GlobusSiteSpec

MINE, OTHER = UUID(int=1), UUID(int=2)
STALE = "Another instance of this endpoint is running.  (Perhaps on another login node?)  Refusing to start."


class Executor:
    """The SDK's, of an endpoint that refuses the first few tasks in the words of the real one.

    Attributes:
        is_away: Whether the service cannot be reached when the function is registered.
    """

    is_away = False

    def __init__(self, refusals: int) -> None:
        self.refusals, self.sent, self.batch_size = refusals, 0, 1

    def register_function(self, function: object) -> str:
        if self.is_away:
            self.is_away = False
            raise NetworkError("no route", OSError())
        return "the function"

    def submit_to_registered_function(self, function: str | None, args: tuple[str, dict[str, int]]) -> Future:
        assert function == "the function"
        self.sent += 1
        done: Future = Future()
        done.task_id = str(self.sent)
        if self.sent <= self.refusals:
            done.set_exception(TaskExecutionFailed(f"\n{STALE}\n", "0"))
        else:
            done.set_result({"sent": self.sent})
        return done

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        pass


SITE = GlobusSiteSpec.model_validate({"name": "alps", "endpoint_id": str(UUID(int=9)), "work_dir": "/x"})


@pytest.fixture
def linked(monkeypatch):
    """Open a link by way of an executor and a client that are the test's."""
    monkeypatch.setattr(client, "_STALE_EVERY_S", 0.0)
    with ExitStack() as open_links:
        yield lambda *sdk: open_links.enter_context(closing(EndpointClient(SITE, MINE, *sdk)))


@pytest.fixture
def link(linked):
    return linked()


def mended(link: EndpointClient, task: Future) -> None:
    eventually(lambda: link.mend() or task.done(), "the task is mended", 10.0)


def test_a_task_that_is_refused_until_a_pid_file_is_stale_is_sent_again(linked) -> None:
    link = linked(Executor(refusals=3))
    task = link.submit("poll", {})
    mended(link, task)
    assert task.result(0) == {"sent": 4}
    assert not link.trouble


def test_an_endpoint_that_really_runs_twice_is_refused_in_its_own_words(linked, monkeypatch) -> None:
    monkeypatch.setattr(client, "_STALE_PATIENCE_S", 0.05)
    link = linked(Executor(refusals=10**6))
    task = link.submit("poll", {})
    mended(link, task)
    with pytest.raises(RefusedError, match="on another login node"):
        task.result(0)
    assert "was killed" in link.trouble


def test_a_function_that_could_not_be_registered_is_registered_with_the_next_task(linked) -> None:
    executor = Executor(refusals=0)
    executor.is_away = True
    link = linked(executor)
    with pytest.raises(UnreachableError, match="no route"):
        link.submit("poll", {}).result(10)
    assert link.submit("poll", {}).result(10) == {"sent": 1}


def test_a_task_is_measured_as_it_travels_where_each_quote_is_escaped_twice(linked) -> None:
    link = linked(Executor(refusals=0))
    with pytest.raises(TooLargeError, match=r"site 'alps' is 1\d\.\d MB"):
        link.submit("run", {"order": '"' * 3_000_000})
    assert link.submit("run", {"order": "x" * 3_000_000}).result(10) == {"sent": 1}


def test_what_the_service_finds_too_large_is_said_to_be() -> None:
    response = requests.Response()
    response.status_code, response.url = 413, "http://service/submit"
    response.request = requests.Request("POST", response.url).prepare()
    found = client.translated(SITE, GlobusAPIError(response))
    assert isinstance(found, TooLargeError)
    assert "What was sent to site 'alps' is too large" in str(found)


def test_a_result_that_the_endpoint_finds_too_large_is_said_to_be() -> None:
    said = repr(MaxResultSizeExceeded(11_000_000, 10 * 1024 * 1024))
    found = client.translated(SITE, TaskExecutionFailed(said, "0"))
    assert isinstance(found, TooLargeError)
    assert "What a task at site 'alps' returns is 11.0 MB, and Globus Compute takes 10 MB" in str(found)


def test_a_failure_is_told_in_the_words_of_the_site_not_in_the_advice_of_the_sdk() -> None:
    said = "Traceback (most recent call last):\n  ...\nTypeError: cannot serialize a lock\n"
    found = client.translated(SITE, TaskExecutionFailed(said, "0"))
    assert isinstance(found, RefusedError)
    assert found.cause == "TypeError: cannot serialize a lock"


def test_a_task_whose_pilot_has_ended_says_so() -> None:
    said = repr(ManagerLost(b"c0ffee", "n0"))
    framed = f"{'+' * 68}\nTraceback ...\n{ManagerLost.__module__}.ManagerLost: {said}\n{'-' * 68}"
    found = client.translated(SITE, TaskExecutionFailed(framed, "0"))
    assert isinstance(found, PilotLostError)
    assert str(found) == f"endpoint {SITE.endpoint_id}: its pilot has ended"


class LosesConnections(Executor):
    """The SDK's, when the broker goes away while a task runs: its future fails, the task runs on."""

    def __init__(self) -> None:
        super().__init__(refusals=0)
        self.open: list[Future] = []

    def submit_to_registered_function(self, function: str | None, args: tuple[str, dict[str, int]]) -> Future:
        self.open.append(Future())
        self.open[-1].task_id = str(len(self.open))
        return self.open[-1]


class Client:
    """The SDK's, when it is asked what has become of tasks; the first time, nobody answers.

    Attributes:
        states: What it says of those that have not failed.
        failed: Those that have: they are missing among the others, as in the real one.
    """

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()

    def get_batch_result(self, names: list[str]) -> dict[str, dict[str, Any]]:
        self.asked.append(names)
        if len(self.asked) == 1:
            raise NetworkError("no route", OSError())
        return {
            name: {"pending": True, **self.states.get(name, {})} for name in names if name not in self.failed
        }

    def get_endpoint_status(self, endpoint: str) -> dict[str, str]:
        return {"status": "online"}

    def get_task(self, name: str) -> dict[str, Any]:
        assert name in self.failed
        raise TaskExecutionFailed("Traceback\nValueError: no such folder", "0")


@pytest.fixture
def broken(linked, monkeypatch):
    """A link whose three tasks have lost their way back, who is asked for them, and the tasks."""
    monkeypatch.setattr(client, "_RELOAD_AFTER_S", 0.0)
    monkeypatch.setattr(client, "_RELOAD_SELDOM_S", 0.0)
    executor, service = LosesConnections(), Client()
    link = linked(executor, service)
    tasks = [link.submit("run", {}) for _ in range(3)]
    for task in tasks:
        eventually(lambda task=task: task.id, "the service takes it", 10.0)
    executor.open[0].set_result({"came": "before"})
    for inner in executor.open[1:]:
        inner.set_exception(ConnectionError("the broker has gone"))
    assert [task.done() for task in tasks] == [True, False, False], "they run on; only the way back is broken"
    return link, service, tasks


def test_results_whose_connection_broke_are_asked_for_until_the_service_has_them(broken) -> None:
    link, client, (_, first, second) = broken
    eventually(lambda: link.mend() or len(client.asked) >= 3, "the service is asked three times", 10.0)
    assert not first.done()
    client.states["2"] = {"pending": False, "result": "done meanwhile"}
    mended(link, first)
    assert first.result(0) == "done meanwhile"
    client.failed.add("3")
    mended(link, second)
    with pytest.raises(RefusedError, match="ValueError: no such folder"):
        second.result(0)
    assert all(set(names) <= {"2", "3"} for names in client.asked), "and nothing else is asked for"
    asked = len(client.asked)
    for _ in range(3):
        link.mend()
        assert link.ask_whether_online().result(10), "all that was asked before has been answered"
    assert len(client.asked) <= asked + 1, "nor anything once all have come"


def test_the_sdk_still_tells_what_has_become_of_tasks() -> None:
    assert list(inspect.signature(SDKClient.get_batch_result).parameters) == ["self", "task_id_list"]
    assert list(inspect.signature(SDKClient.get_task).parameters) == ["self", "task_id"]


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), max_size=80))
def test_no_more_requests_than_the_service_allows_are_made_however_they_come(pauses: list[float]) -> None:
    clock, made = Clock(), list[float]()
    pacer = Pacer(MOST, WINDOW_S, clock)
    for pause_s in pauses:
        clock.now += pause_s
        asked_at = clock.now
        pacer.wait()
        made.append(clock.now)
        assert clock.now - asked_at <= WINDOW_S
    for at in made:
        assert sum(at <= other < at + 10.0 for other in made) <= 20


@given(turns=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.1, 1.0, 7.0])), max_size=60))
def test_processes_of_one_user_share_what_the_service_allows(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, float]]
) -> None:
    clock, made = Clock(), list[float]()
    file = tmp_path_factory.mktemp("globus") / "requests.json"
    pacers = [Pacer(MOST, WINDOW_S, clock, file) for _ in range(3)]
    for which, pause_s in turns:
        clock.now += pause_s
        pacers[which].wait()
        made.append(clock.now)
    for at in made:
        assert sum(at <= other < at + 10.0 for other in made) <= 20


@pytest.mark.parametrize("text", ["[1.0, 2", "null", '["a"]', "[1e12]"])
def test_a_file_of_requests_that_is_broken_or_of_another_time_keeps_nobody_waiting(tmp_path, text) -> None:
    clock, file = Clock(), tmp_path / "requests.json"
    file.write_text(text)
    Pacer(MOST, WINDOW_S, clock, file).wait()
    assert clock.now == 0.0
    (unusable := tmp_path / "a folder").mkdir()
    pacer = Pacer(MOST, WINDOW_S, clock, unusable)
    for _ in range(MOST + 1):
        pacer.wait()
    assert clock.now == pytest.approx(WINDOW_S), "it paces itself alone"


def test_everything_that_is_asked_waits_in_one_line(monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(rate_limited_client.PACER, "wait", lambda: asked.append("in turn"))
    client = object.__new__(rate_limited_client.RateLimitedClient)
    for name in ("batch_run", "get_batch_result", "get_endpoint_status", "get_result_amqp_url", "get_task"):
        with pytest.raises((TypeError, AttributeError)):  # it has not logged in
            getattr(client, name)()
    assert len(asked) == 5


def test_without_a_login_the_site_is_refused_in_words_and_nobody_is_asked(
    link, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RefusedError, match="nobody is logged in to Globus Compute on this machine"):
        link.ask_whether_online().result(60)


class Watcher(threading.Thread):
    """What the SDK's thread for a task group shows of itself."""

    def __init__(self, group: UUID) -> None:
        super().__init__(daemon=True)
        self.task_group_id = group
        self.over = threading.Event()
        self.told: list[tuple[bool, bool]] = []

    def run(self) -> None:
        self.over.wait()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.told.append((wait, cancel_futures))
        self.over.set()


@pytest.fixture
def watchers():
    started = [Watcher(MINE), Watcher(OTHER)]
    for watcher in started:
        watcher.start()
    yield started
    for watcher in started:
        watcher.over.set()
        watcher.join()


def test_only_the_watchers_of_this_group_are_ended(watchers) -> None:
    mine, other = watchers
    end_watchers(MINE)
    assert mine.told == [(False, True)]
    assert not other.told


def test_an_sdk_without_such_threads_is_left_alone() -> None:
    end_watchers(UUID(int=3))


def test_the_sdk_still_shows_what_we_look_for() -> None:
    assert issubclass(sdk._ResultWatcher, threading.Thread)
    assert {"wait", "cancel_futures"} <= inspect.signature(sdk._ResultWatcher.shutdown).parameters.keys()
    assert "self.task_group_id = " in inspect.getsource(sdk._ResultWatcher.__init__)
