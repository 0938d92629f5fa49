"""Tasks to one Globus Compute endpoint, and their results, as reliably as its SDK allows.

The SDK's `Executor` ends for good at the first refused request, and its result watcher when the broker is
away for too long. Both are replaced here, in the same task group, and the service is asked once in a while
for results that were lost on their way back. A future may still never resolve: whoever waits for one needs
another way to know (`endpoint_tasks.poll`). Futures of the SDK are never cancelled.

One thread makes all requests to the service, so nobody else waits for it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

from parsl_rasda.errors import RasdaError
from parsl_rasda.study.sites import GlobusSiteSpec

LIMIT_BYTES = 10_000_000  # the hosted service's, of a request and of a result
_TOO_LARGE = 413
_RESULT_TOO_LARGE = re.compile(r"MaxResultSizeExceeded\((\d+), \d+\)")  # the endpoint says so
_PILOT_LOST = "errors.ManagerLost: "
_ENVELOPE_BYTES = 2_000  # what the SDK adds to a request
_BATCH = 128
_RELOAD_AFTER_S, _RELOAD_SELDOM_S = 10.0, 300.0
_LOGIN = (
    "nobody is logged in to Globus Compute on this machine. Do so once, with python -c "
    "'from globus_compute_sdk import Client; Client()', or set GLOBUS_COMPUTE_CLIENT_ID and "
    "GLOBUS_COMPUTE_CLIENT_SECRET."
)
# An endpoint whose process for tasks was killed starts no other before the file of the dead one is stale,
# after three of its heartbeats. Until then it refuses every task with this message.
_STALE = "Another instance of this endpoint is running"
_STALE_EVERY_S, _STALE_PATIENCE_S = 3.0, 300.0

logger = logging.getLogger(__name__)


class TooLargeError(RasdaError):
    """A task or its result is larger than Globus Compute allows."""

    def __init__(self, what: str, size_bytes: int | None) -> None:
        super().__init__(what, size_bytes)
        self.what, self.size_bytes = what, size_bytes

    def __str__(self) -> str:
        size = "too large" if self.size_bytes is None else f"{self.size_bytes / 1e6:.1f} MB"
        return (
            f"{self.what} is {size}, and Globus Compute takes {LIMIT_BYTES / 1e6:g} "
            "MB at most. Keep large data in a file on the site, and pass its path."
        )


class UnreachableError(RasdaError):
    """The service could not be asked; what was to be sent was probably not accepted."""

    def __init__(self, endpoint: str, cause: str) -> None:
        super().__init__(endpoint, cause)
        self.endpoint, self.cause = endpoint, cause

    def __str__(self) -> str:
        return f"Globus Compute cannot be reached for endpoint {self.endpoint}: {self.cause}"


class RefusedError(RasdaError):
    """The service, the endpoint or the task there has failed, with a reason."""

    def __init__(self, endpoint: str, cause: str) -> None:
        super().__init__(endpoint, cause)
        self.endpoint, self.cause = endpoint, cause

    def __str__(self) -> str:
        return f"endpoint {self.endpoint}: {self.cause}"


class PilotLostError(RefusedError):
    """The pilot that had the task has ended: its batch job was cancelled, or came to its end."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, "its pilot has ended")


class UnsentError(Exception):
    """The SDK has given up a task before it was sent."""

    def __str__(self) -> str:
        return "the task was not sent"


def parsl_rasda_task(call, arguments):  # type: ignore[no-untyped-def]  # travels as source, to any Python
    """Run on the endpoint: the one function that is ever registered."""
    import platform
    import sys

    try:
        from parsl_rasda.agent import endpoint_tasks
    except Exception as error:  # noqa: BLE001  whatever it is, it is reported
        return {"missing": str(error), "python": platform.python_version(), "executable": sys.executable}
    return endpoint_tasks.answer(call, arguments)


class Task(Future[Any]):
    """A task on its way; it outlives the futures that the SDK has for it, one after the other."""

    inner: Any = None  # a ComputeFuture, once it was handed to the SDK
    send: Callable[[], None]  # hands it to the SDK, once more if need be
    refused_since: float | None = None  # by an endpoint whose process for tasks has just died

    @property
    def id(self) -> str | None:
        """The service's id, or None until the service has taken it."""
        return None if self.inner is None else self.inner.task_id


class EndpointClient:
    """One endpoint, in one task group that outlives this process.

    Attributes:
        trouble: Why tasks or results do not get through for now; empty while they do.
    """

    trouble: str = ""

    def __init__(self, site: GlobusSiteSpec, group: UUID, executor: Any = None, service: Any = None) -> None:
        """Prepare; nothing is imported or asked before the first task.

        Args:
            site: Whose endpoint it is.
            group: The task group.
            executor: An executor of the SDK to use; one of this module's making by default.
            service: A client of the SDK to use, likewise.
        """
        self._site, self._group = site, group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"globus-{site.name}")
        self._client: Any = service  # the SDK is untyped
        self._executor: Any = executor
        self._function: str | None = None
        self._largest = 1
        self._open: set[Task] = set()
        self._refused: deque[Task] = deque()
        self._refused_at = 0.0
        self._has_lost_results = False  # a connection has broken on which results come
        self._reload_at, self._reload_every_s = 0.0, _RELOAD_AFTER_S
        self._is_closed = False

    def submit(self, call: str, arguments: Mapping[str, Any]) -> Task:
        """Send a task; it fails with one of this module's errors, or never resolves.

        Args:
            call: As in `endpoint_tasks.answer`.
            arguments: Plain JSON, by name.

        Raises:
            TooLargeError: If it can never be sent.
        """
        packed = json.dumps([call, arguments])  # a string in the request, which is JSON itself
        size = len(json.dumps(packed)) + _ENVELOPE_BYTES
        if size > LIMIT_BYTES:
            raise TooLargeError(f"What {call!r} sends to site {self._site.name!r}", size)
        task = Task()
        task.send = lambda: self._send(task, call, arguments, size)
        self._do(task.send, task)
        return task

    def ask_whether_online(self) -> Future[bool]:
        """Ask the service whether it hears of the endpoint."""
        found: Future[bool] = Future()

        def ask() -> None:
            state = self._connect().get_endpoint_status(self._site.endpoint_id)
            found.set_result(state.get("status") == "online")

        self._do(ask, found)
        return found

    def mend(self) -> None:
        """Send again what was refused for a while, and ask for results that were lost with a connection."""
        if self._refused and time.monotonic() > self._refused_at + _STALE_EVERY_S:
            self._refused_at = time.monotonic()
            while self._refused:
                task = self._refused.popleft()
                self._do(task.send, task)
        if self._has_lost_results and time.monotonic() > self._reload_at:
            self._reload_at = time.monotonic() + self._reload_every_s
            self._reload_every_s = min(2 * self._reload_every_s, _RELOAD_SELDOM_S)
            self._do(self._reload, Future())

    def earlier_results(self) -> Future[list[Any]]:
        """Ask the service for the results that it keeps of the group's tasks, whoever has sent them."""
        found: Future[list[Any]] = Future()

        def load() -> None:
            from parsl_rasda.backends.globus.rate_limited_client import PACER

            executor = self._connect_executor()
            PACER.wait()
            loaded = [inner for inner in executor.reload_tasks() if inner.done()]
            found.set_result([inner.result() for inner in loaded if inner.exception() is None])

        self._do(load, found)
        return found

    def close(self) -> None:
        """Disconnect; tasks run on, but their futures resolve no more."""
        self._is_closed = True
        self._thread.submit(self._drop_executor).result()
        self._thread.shutdown(wait=True)

    # ------------------------------------------------------------------------------ in our thread

    def _do(self, task: Callable[[], None], outer: Future[Any]) -> None:
        def attempt() -> None:
            try:
                task()
            except Exception as error:  # noqa: BLE001  it becomes the result
                _fail(outer, translated(self._site, error))

        try:
            self._thread.submit(attempt)
        except RuntimeError:
            _fail(outer, UnreachableError(self._site.endpoint_id, "the backend was closed"))

    def _connect(self) -> Any:
        from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect
        from globus_sdk import UserApp

        from parsl_rasda.backends.globus.rate_limited_client import RateLimitedClient

        if self._client is None:
            client = RateLimitedClient(do_version_check=False)
            if isinstance(client.app, UserApp) and client.app.login_required():  # it would ask on stdin
                raise RefusedError(self._site.endpoint_id, _LOGIN)
            client.fx_serializer = ComputeSerializer(
                strategy_code=PureSourceTextInspect(), strategy_data=JSONData()
            )
            self._client = client
        return self._client

    def _connect_executor(self) -> Any:
        from globus_compute_sdk import Executor
        from globus_compute_sdk.serialize import JSONData

        if self._executor is None:
            self._executor = Executor(
                self._site.endpoint_id,
                client=self._connect(),
                task_group_id=self._group,
                user_endpoint_config=dict(self._site.user_endpoint_config),
                result_serializers=[JSONData()],
                api_burst_limit=8,  # the client paces its requests, as it does all others
                api_burst_window_s=1,
            )
        self._executor.batch_size = max(1, min(_BATCH, LIMIT_BYTES // self._largest))
        if self._function is None:
            self._function = self._executor.register_function(parsl_rasda_task)
        return self._executor

    def _send(self, task: Task, call: str, arguments: Mapping[str, Any], size: int) -> None:
        self._largest = max(self._largest, size)
        sent = (call, dict(arguments))
        try:
            task.inner = self._connect_executor().submit_to_registered_function(self._function, sent)
        except RuntimeError:  # the SDK's executor ended when a request was refused
            self._drop_executor()
            task.inner = self._connect_executor().submit_to_registered_function(self._function, sent)
        self._open.add(task)
        task.inner.add_done_callback(lambda done: self._resolved(task, done))

    def _resolved(self, task: Task, done: Any) -> None:
        """Pass a result on; called in one of the SDK's threads."""
        error = UnsentError() if done.cancelled() else done.exception()
        if error is None:
            self._conclude(task, done.result())
            return
        failure = translated(self._site, error)
        if isinstance(failure, UnreachableError) and task.id is not None:
            self._reload_every_s, self._has_lost_results = _RELOAD_AFTER_S, True  # the task runs on
            self.trouble = f"results do not come back for now: {failure.cause}"
        else:
            self._refuse(task, error)

    def _refuse(self, task: Task, error: BaseException) -> None:
        self._open.discard(task)
        if not task.done() and not self._is_put_off(task, error):
            task.set_exception(translated(self._site, error))

    def _conclude(self, task: Task, found: Any) -> None:
        self._open.discard(task)
        if task.done():
            return
        if isinstance(found, dict) and "missing" in found:
            cause = (
                f"parsl_rasda cannot be imported there ({found['missing']}; Python {found['python']} at "
                f"{found['executable']}). Install the same version as here, with the same Python."
            )
            task.set_exception(RefusedError(self._site.endpoint_id, cause))
        else:
            self.trouble = ""
            task.set_result(found)

    def _is_put_off(self, task: Task, error: BaseException) -> bool:
        """Whether a refusal is temporary; the task is then sent again before long."""
        now = time.monotonic()
        task.refused_since = task.refused_since or now
        if _STALE not in " ".join(str(error).split()) or now > task.refused_since + _STALE_PATIENCE_S:
            return False
        self._refused_at = now
        self._refused.append(task)
        self.trouble = "the endpoint's process that takes tasks was killed; the next one may not start yet"
        return True

    def _reload(self) -> None:
        """Ask for the results that were lost on their way back, and for no others of the group."""
        self._has_lost_results = False
        waiting = {task.id: task for task in tuple(self._open) if task.id is not None and task.inner.done()}
        names = list(waiting)
        self._has_lost_results |= bool(names)
        for first in range(0, len(names), _BATCH):
            asked = names[first : first + _BATCH]
            found = self._connect().get_batch_result(asked)
            for name in asked:
                if "result" in found.get(name, {}):
                    self._conclude(waiting[name], found[name]["result"])
                elif name not in found:
                    self._learn_failure(waiting[name])

    def _learn_failure(self, task: Task) -> None:
        """Ask how a task has failed: those that have are missing among the results of several."""
        try:
            self._connect().get_task(task.id)
        except Exception as error:
            if isinstance(translated(self._site, error), UnreachableError):
                raise
            self._refuse(task, error)

    def _drop_executor(self) -> None:
        """Drop the SDK's executor; tasks that the service has go on."""
        if self._executor is None:
            return
        self._executor.shutdown(wait=False, cancel_futures=True)  # those that were never sent
        self._executor = None
        if self._is_closed:
            end_watchers(self._group)


def end_watchers(group: UUID) -> None:
    """End the SDK's threads that wait for results of a task group.

    They, and the SDK at exit, would wait for lost tasks for ever; the SDK has no call for it.
    """
    for thread in threading.enumerate():
        shutdown = getattr(thread, "shutdown", None)
        if getattr(thread, "task_group_id", None) == group and callable(shutdown):
            shutdown(wait=False, cancel_futures=True)


def translated(site: GlobusSiteSpec, error: BaseException) -> RasdaError:
    """Return one of this module's errors for one of the SDK's."""
    from globus_compute_sdk.errors import TaskExecutionFailed
    from globus_sdk import GlobusAPIError

    if isinstance(error, RasdaError):
        return error
    if isinstance(error, TaskExecutionFailed):  # its text has advice after the site's message
        lines = [line.strip() for line in error.remote_data.splitlines() if line.strip(" +-")]
        if lines and _PILOT_LOST in lines[-1]:
            return PilotLostError(site.endpoint_id)
        if lines and (size := _RESULT_TOO_LARGE.fullmatch(lines[-1])):
            return TooLargeError(f"What a task at site {site.name!r} returns", int(size[1]))
        return RefusedError(site.endpoint_id, lines[-1] if lines else type(error).__name__)
    if isinstance(error, GlobusAPIError) and error.http_status == _TOO_LARGE:
        return TooLargeError(f"What was sent to site {site.name!r}", None)
    temporary = {429, 500, 502, 503, 504}
    if isinstance(error, GlobusAPIError) and error.http_status not in temporary:
        reason = (error.raw_json or {}).get("reason") or error.message
        return RefusedError(site.endpoint_id, f"{reason} ({error.http_status} {error.code})")
    words = " ".join(str(error).split()) or type(error).__name__
    return UnreachableError(site.endpoint_id, words[:300])


def _fail(future: Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
