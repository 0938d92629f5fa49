"""A stand-in, on loopback, for the hosted web service of Globus Compute and for Globus Auth.

It speaks as much of the wire protocol as an unmodified globus-compute-sdk `Executor` and unmodified
`globus-compute-endpoint` daemons need, through a real RabbitMQ, and keeps the service's limits: the size
of a request and of a result, requests per ten seconds, and how long a result waits to be fetched. Who has
started it may ask how they were met, and change them. Run as a program::

    python stand_in.py --amqp amqp://user:password@127.0.0.1:5673/%2F --port-file PORT

It answers to any host name: clients reach it as their HTTP proxy, so that it may have any free port.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pika
import pika.exceptions
from globus_compute_common.messagepack import pack, unpack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, ResultErrorDetails, Task
from globus_compute_sdk.errors import MaxResultSizeExceeded

from tests.integration.globus.limits import Gate, Limits, RefusedError

IDENTITY = "11111111-2222-4333-8444-555555555555"  # the one user there is
USERNAME = "tester@example.org"
COMPUTE_SCOPE_ID = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
COMPUTE_SCOPE = f"https://auth.globus.org/scopes/{COMPUTE_SCOPE_ID}/all"
QUEUE_PREFIX = "tg."
SHARED_QUEUES = ("results", "heartbeats")  # from every endpoint to the service

logger = logging.getLogger("stand-in")


class Broker(threading.Thread):
    """One connection to RabbitMQ, made anew whenever it breaks: publishes on request, consumes results."""

    def __init__(
        self,
        url: str,
        on_message: dict[str, Callable[[bytes], Iterator[tuple[str, bytes]]]],
        expiration_ms: Callable[[], str],
    ) -> None:
        super().__init__(daemon=True, name="broker")
        self._url, self._on_message, self._expiration_ms = url, on_message, expiration_ms
        self._ready = threading.Event()

    def run(self) -> None:
        while True:
            try:
                self._serve()
            except pika.exceptions.AMQPError as error:
                logger.warning("broker lost: %r", error)
            self._ready.clear()
            time.sleep(0.2)

    def await_ready(self) -> None:
        if not self._ready.wait(30):
            raise SystemExit("no broker")

    def act(self, task: Callable[[], Any]) -> None:
        """Do something with the channel, in its thread, and wait until it is done."""
        if not self._ready.is_set():
            raise RefusedError(503, "SERVICE_UNAVAILABLE", "the message broker is away")
        done, errors = threading.Event(), []

        def in_thread() -> None:
            try:
                task()
            except Exception as error:  # it is raised below
                errors.append(error)
                raise
            finally:
                done.set()

        self._connection.add_callback_threadsafe(in_thread)
        if not done.wait(10) or errors:
            raise RefusedError(503, "SERVICE_UNAVAILABLE", f"the message broker is away: {errors}")

    def declare(self, queue: str) -> None:
        self.channel.queue_declare(queue, durable=True)

    def publish(self, queue: str, body: bytes, **properties: Any) -> None:
        self.channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, **properties))

    def _serve(self) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(self._url))
        self.channel = self._connection.channel()
        for name in SHARED_QUEUES:
            self.channel.exchange_declare(name, exchange_type="direct", durable=True)
            self.declare(name)
            self.channel.queue_bind(name, name, routing_key=name)
            self.channel.basic_consume(name, self._consume)
        self._ready.set()
        self.channel.start_consuming()

    def _consume(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        try:
            for queue, out in self._on_message[method.routing_key](body):
                self.publish(queue, out, timestamp=int(time.time()), expiration=self._expiration_ms())
        except (TypeError, ValueError, KeyError):
            logger.exception("bad message")
        channel.basic_ack(method.delivery_tag)


class Service:
    """Functions, endpoints and tasks."""

    def __init__(self, amqp_url: str, limits: Limits) -> None:
        self._amqp_url, self.gate = amqp_url, Gate(limits)
        self._lock = threading.RLock()
        self._functions: dict[str, dict[str, Any]] = {}
        self._endpoints: dict[str, dict[str, Any]] = {}
        self._children: dict[tuple[str, str], str] = {}  # user endpoints, by endpoint and configuration
        self._user_endpoints: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, dict[str, Any]] = {}
        self._broker = Broker(
            amqp_url,
            {"results": self._on_result, "heartbeats": self._on_heartbeat},
            lambda: str(int(self.gate.limits.result_window_s * 1000)),
        )
        self._broker.start()
        self._broker.await_ready()

    def register_function(self, data: dict[str, Any]) -> dict[str, Any]:
        function = str(uuid.uuid4())
        self._functions[function] = data
        return {"function_uuid": function}

    def register_endpoint(self, data: dict[str, Any], endpoint: str) -> dict[str, Any]:
        self._endpoints.setdefault(endpoint, {}).update(data, id=endpoint)
        self._broker.act(lambda: self._broker.declare(f"{endpoint}.commands"))
        return {
            "endpoint_id": endpoint,
            "command_queue_info": {"connection_url": self._amqp_url, "queue": f"{endpoint}.commands"},
            "heartbeat_queue_info": self._way_to("heartbeats"),
        }

    def endpoint(self, endpoint: str) -> dict[str, Any]:
        if endpoint not in self._endpoints:
            raise RefusedError(404, "ENDPOINT_NOT_FOUND", f"There is no endpoint {endpoint}")
        return self._endpoints[endpoint]

    def endpoint_status(self, endpoint: str) -> dict[str, Any]:
        status = self.endpoint(endpoint).get("status", {})
        period_s = status.get("heartbeat_period", 0)
        online = bool(period_s) and time.time() - status["seen"] < 2.5 * period_s
        return {"status": "online" if online else "offline", "details": status}

    def online(self) -> list[str]:
        return [name for name in self._endpoints if self.endpoint_status(name)["status"] == "online"]

    def waiting(self) -> int:
        """Return how many tasks have not ended."""
        return sum("completion_t" not in task for task in self._tasks.values())

    def kept(self) -> int:
        """Return how many tasks have ended whose results can still be fetched."""
        return sum("completion_t" in task and not self._is_gone(task) for task in self._tasks.values())

    def submit(self, endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
        """Start the user endpoint if need be and queue tasks; acknowledged means queued, no more."""
        self.endpoint(endpoint)
        for function in data["tasks"]:
            if function not in self._functions:
                raise RefusedError(404, "FUNCTION_NOT_FOUND", f"There is no function {function}")
        group = data.get("task_group_id") or str(uuid.uuid4())
        child = self._child(endpoint, data.get("user_endpoint_config") or {})
        order = self._order_to_start(child, data)
        messages, answer = self._new_tasks(data, group, child)

        def queue_all() -> None:
            self._broker.declare(f"{child}.tasks")
            self._broker.declare(QUEUE_PREFIX + group)
            stamp = {"content_type": "application/json", "timestamp": int(time.time())}
            self._broker.publish(f"{endpoint}.commands", order, **stamp)
            for body, headers in messages:
                self._broker.publish(f"{child}.tasks", body, headers=headers)

        self._broker.act(queue_all)
        identity = {"task_group_id": group, "endpoint_id": endpoint, "request_id": str(uuid.uuid4())}
        return {"tasks": answer, **identity}

    def task_group(self, group: str) -> dict[str, Any]:
        tasks = [{"id": name} for name, task in self._tasks.items() if task["group"] == group]
        return {"taskgroup_id": group, "tasks": tasks}

    def states(self, names: list[str]) -> dict[str, Any]:
        """Return the states of tasks; a result that was not fetched in time has been thrown away."""
        found = {}
        for name in names:
            task = self._tasks.get(name)
            if task is not None:
                found[name] = {"task_id": name, "status": "abandoned"} if self._is_gone(task) else task
        return {"response": "batch", "results": found}

    def _is_gone(self, task: dict[str, Any]) -> bool:
        age_s = time.time() - float(task.get("completion_t", "inf"))
        return age_s > self.gate.limits.result_window_s

    def _child(self, endpoint: str, options: dict[str, Any]) -> str:
        text = json.dumps(options, sort_keys=True)
        with self._lock:
            child = self._children.setdefault((endpoint, text), str(uuid.uuid4()))
            digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
            name = f"uep.{endpoint}.{digest}"
            self._user_endpoints.setdefault(child, {"name": name, "options": options})
        return child

    def _order_to_start(self, child: str, data: dict[str, Any]) -> bytes:
        """Return the command to the endpoint's manager; it passes over one whose child runs already."""
        credentials = {
            "endpoint_id": child,
            "task_queue_info": {"connection_url": self._amqp_url, "queue": f"{child}.tasks"},
            "result_queue_info": self._way_to("results"),
            "heartbeat_queue_info": self._way_to("heartbeats"),
        }
        order = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {
                "name": self._user_endpoints[child]["name"],
                "user_opts": self._user_endpoints[child]["options"],
                "user_runtime": data.get("user_runtime") or {},
                "amqp_creds": credentials,
            },
            "globus_effective_identity": IDENTITY,
            "globus_identity_set": [{"sub": IDENTITY, "username": USERNAME}],
            "globus_username": USERNAME,
        }
        return json.dumps(order).encode()

    def _new_tasks(
        self, data: dict[str, Any], group: str, child: str
    ) -> tuple[list[tuple[bytes, dict[str, Any]]], dict[str, list[str]]]:
        messages, answer = [], {}
        for function, payloads in data["tasks"].items():
            names = [str(uuid.uuid4()) for _ in payloads]
            answer[function] = names
            for name, payload in zip(names, payloads, strict=True):
                headers = {
                    "task_uuid": name,
                    "function_uuid": function,
                    "resource_specification": json.dumps(data.get("resource_specification")),
                    "result_serializers": data.get("result_serializers") or [],
                }
                task = Task(task_id=name, task_buffer=self._functions[function]["function_code"] + payload)
                messages.append((pack(task), headers))
                self._tasks[name] = {"task_id": name, "status": "waiting", "group": group, "child": child}
        return messages, answer

    def _way_to(self, queue: str) -> dict[str, Any]:
        properties = {"delivery_mode": 2, "content_type": "application/x-msgpack"}
        publish = {"exchange": queue, "routing_key": queue, "mandatory": True, "properties": properties}
        return {
            "connection_url": self._amqp_url,
            "exchange": queue,
            "queue": queue,
            "queue_publish_kwargs": publish,
        }

    def _on_result(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        result = unpack(body)
        if not isinstance(result, Result):
            raise TypeError(type(result))
        task = self._tasks[str(result.task_id)]
        if "completion_t" in task:
            return  # the second of two
        size, most = len(result.data), self.gate.limits.result_bytes
        if size > most and not result.is_error:  # in the words of the endpoint, which has a limit of its own
            error = MaxResultSizeExceeded(size, most)
            details = ResultErrorDetails(code=type(error).__name__, user_message=str(error))
            result = Result(task_id=result.task_id, data=repr(error), error_details=details)
            body = pack(result)
        if result.is_error:
            task.update(status="failed", exception=result.data)
        else:
            task.update(status="success", result=result.data)
        task["completion_t"] = str(time.time())
        yield QUEUE_PREFIX + task["group"], body

    def _on_heartbeat(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        report = unpack(body)
        if not isinstance(report, EPStatusReport):
            raise TypeError(type(report))
        name, state = str(report.endpoint_id), {**report.global_state, "seen": time.time()}
        if name in self._endpoints:
            self._endpoints[name]["status"] = state
        if name in self._user_endpoints and "error" in state:  # it could not start: nor can what waits for it
            for task_id, task in self._tasks.items():
                if task["child"] == name and "completion_t" not in task:
                    task.update(status="failed", exception=state["error"], completion_t=str(time.time()))
                    details = ResultErrorDetails(code="STARTUP_FAILED", user_message=state["error"])
                    error = Result(task_id=task_id, data=state["error"], error_details=details)
                    yield QUEUE_PREFIX + task["group"], pack(error)


class Handler(BaseHTTPRequestHandler):
    """Routes requests."""

    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        logger.info(format, *args)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, found = 200, self._route(urlparse(self.path).path.rstrip("/"), body)
        except RefusedError as error:
            status = error.status
            found = {"code": error.code, "reason": error.reason, "http_status_code": status, "error_args": []}
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  the base class names them so

    def _route(self, path: str, body: bytes) -> Any:
        if path.startswith(("/v2/oauth2/", "/v2/api/identities")):
            return _authorise(path, body)
        if path == "/v2/version":
            return {"api": "stand-in", "min_sdk_version": "2.0.0", "min_ep_version": "2.0.0"}
        if path in {"/online", "/waiting", "/kept", "/requests", "/limits"}:  # for whoever started it
            return self._tell(path, body)
        if not self.headers.get("Authorization", "").startswith("Bearer tok-"):
            raise RefusedError(401, "UNAUTHENTICATED", "no token")
        self.service.gate.weigh(len(body))
        return self._compute(path, json.loads(body) if body else {})

    def _tell(self, path: str, body: bytes) -> Any:
        match path:
            case "/online":
                return self.service.online()
            case "/waiting":
                return self.service.waiting()
            case "/kept":
                return self.service.kept()
            case "/limits":
                return self.service.gate.change(json.loads(body))
        return self.service.gate.counted()

    def _compute(self, path: str, data: Any) -> Any:  # noqa: C901, PLR0911  a table
        service = self.service
        named = re.fullmatch(r"/v[23]/(endpoints|tasks|taskgroup)/([0-9a-f-]{36})(/\w+)?", path)
        match (self.command, *(named.groups() if named else (path,))):
            case "POST", "/v3/endpoints":
                return service.register_endpoint(data, str(uuid.uuid4()))
            case "PUT", "endpoints", str(name), None:
                return service.register_endpoint(data, name)
            case _, "endpoints", _, "/lock":
                return {"status": "ok"}
            case "DELETE", "endpoints", *_:
                return {"status": "ok"}
        service.gate.count()  # from here on, what clients ask for
        match (self.command, *(named.groups() if named else (path,))):
            case _, "/v2/get_amqp_result_connection_url":
                return {"queue_prefix": QUEUE_PREFIX, "connection_url": service._amqp_url}
            case "POST", "/v2/functions" | "/v3/functions":
                return service.register_function(data)
            case "POST", "endpoints", str(name), "/submit":
                return service.submit(name, data)
            case _, "endpoints", str(name), "/status":
                return service.endpoint_status(name)
            case _, "endpoints", str(name), None:
                return {k: v for k, v in service.endpoint(name).items() if k != "status"}
            case _, "tasks", str(name), None:
                return service.states([name])["results"].get(name, {})
            case "POST", "/v2/batch_status":
                return service.states(data["task_ids"])
            case _, "taskgroup", str(name), None:
                return service.task_group(name)
        raise RefusedError(404, "NOT_FOUND", f"{self.command} {path}")


def _authorise(path: str, body: bytes) -> Any:
    """Be Globus Auth."""
    me = {"sub": IDENTITY, "name": "Tester", "preferred_username": USERNAME, "email": USERNAME}
    if path == "/v2/oauth2/userinfo":
        return {**me, "identity_set": [{**me, "username": USERNAME}]}
    if path == "/v2/api/identities":
        return {"identities": [{"id": IDENTITY, "username": USERNAME, "name": "Tester", "email": USERNAME}]}
    if path == "/v2/oauth2/token/revoke":
        return {"active": False}
    form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
    scopes: dict[str, list[str]] = {}
    for scope in form.get("scope", COMPUTE_SCOPE).split():
        plain = re.sub(r"\[.*", "", scope.lstrip("*"))
        scopes.setdefault("funcx_service" if COMPUTE_SCOPE_ID in plain else "auth.globus.org", []).append(
            plain
        )
    tokens = [
        {
            "access_token": "tok-" + base64.urlsafe_b64encode(server.encode()).decode(),
            "scope": " ".join(names),
            "expires_in": 172800,
            "token_type": "Bearer",
            "resource_server": server,
            "other_tokens": [],
        }
        for server, names in scopes.items()
    ]
    return {**tokens[0], "other_tokens": tokens[1:]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--amqp", required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("pika").setLevel(logging.WARNING)
    Handler.service = Service(options.amqp, Limits())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    beside = options.port_file.with_suffix(".new")
    beside.write_text(str(server.server_address[1]))
    beside.replace(options.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
