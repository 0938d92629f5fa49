"""The report of a run as a page that follows it: a server on this machine, for whoever knows the token.

The page hears by server-sent events that there is something new, and fetches itself again. The server binds
to the loopback interface. Every request must have the token and name this machine as its host, so that no
other user and no page of another site can read a run.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from parsl_rasda.errors import InvalidSettingError, RasdaError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.html import page
from parsl_rasda.reporting.runs import read_run

HOST = "127.0.0.1"
_LOOK_S = 1.0  # at the journals
_BUSY = 0.2  # of the time goes into making the page, at most
_SILENT_S = 15.0  # after which a line is sent, by which a closed page is noticed

logger = logging.getLogger(__name__)


@contextmanager
def live_page(directory: Path, port: int, every_s: float = _LOOK_S) -> Iterator[str]:
    """Serve the page of a run while the block lasts; give its address, token and all.

    Args:
        directory: The run directory.
        port: Where; 0 takes one that is free.
        every_s: Time between two looks at the run [s].

    Raises:
        InvalidSettingError: If the port is taken.
        RunDirectoryError: If it is not the directory of a run.
    """
    read_run(directory)
    try:
        server = _Server(directory, port, every_s)
    except (OSError, OverflowError) as error:
        raise InvalidSettingError("--web", port, f"a port that is free here ({error})") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="live-page", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/?token={server.token}"
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


def _state_of(directory: Path) -> str:
    """Return a digest of what changes whenever the page would: files that grow, and who runs the study."""
    files = [*directory.glob("journal.jsonl"), *directory.glob("*/journal.jsonl")]
    files += [*directory.glob("stages/*/*.json"), *directory.glob("controllers/[0-9]*")]
    found: list[object] = [RunDirectory(directory).controller]  # one that was killed changes no file
    for file in sorted(files):
        with suppress(OSError):
            found.append((str(file), file.stat().st_size))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


class _Page:
    """The page, one for all who ask; it is made anew in a fifth of the time at most."""

    def __init__(self, directory: Path, events: str, every_s: float) -> None:
        self._directory, self._events, self._every_s = directory, events, every_s
        self._text, self._state, self._due_at = "", "", 0.0
        self._lock = threading.Lock()

    def text(self) -> str:
        """Return the page, which asks to hear of what comes after it.

        Raises:
            RasdaError: If the run cannot be read.
        """
        with self._lock:
            began = time.monotonic()
            if began >= self._due_at:
                state = _state_of(self._directory)
                self._text = page(read_run(self._directory), events=f"{self._events}&state={state}")
                self._state = state
                self._due_at = began + max(self._every_s, (time.monotonic() - began) / _BUSY)
            return self._text

    def state(self) -> str:
        """Return the state of the run that `text` would show now."""
        with self._lock:
            return self._state if time.monotonic() < self._due_at else _state_of(self._directory)


class _Server(ThreadingHTTPServer):
    """Serves one run, to whoever has the token."""

    daemon_threads = True

    def __init__(self, directory: Path, port: int, every_s: float) -> None:
        self.every_s = every_s
        self.token, self.ended = secrets.token_urlsafe(24), threading.Event()
        self.page = _Page(directory, f"events?token={self.token}", every_s)
        super().__init__((HOST, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the library's name
        try:
            place = urlsplit(self.path)
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain", "This is no address.\n")
            return
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        given = asked.get("token", "")
        if not hmac.compare_digest(given.encode(), self.server.token.encode()) or not self._is_own_host():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "The address lacks its token.\n")
        elif place.path == "/":
            self._page()
        elif place.path == "/events":
            self._events(asked.get("state", ""))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is one page, at /.\n")

    def _is_own_host(self) -> bool:
        """Whether the browser asked for this machine: a name that was bound to it later is another's."""
        return self.headers.get("Host", "").rpartition(":")[0] in {HOST, "localhost"}

    def _page(self) -> None:
        try:
            text = self.server.page.text()
        except RasdaError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n")
            return
        self._answer(HTTPStatus.OK, "text/html", text)

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def _events(self, known: str) -> None:
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self._tell_changes(known)
        except OSError:
            logger.debug("a page was closed")

    def _tell_changes(self, known: str) -> None:
        known = known or self.server.page.state()
        self.wfile.write(b": follows\n\n")
        told_at = time.monotonic()
        while not self.server.ended.is_set():
            line = b""
            if (now := self.server.page.state()) != known:
                known, line = now, b"data: changed\n\n"
            elif time.monotonic() >= told_at + _SILENT_S:
                line = b": still here\n\n"
            if line:
                self.wfile.write(line)
                told_at = time.monotonic()
            self.server.ended.wait(self.server.every_s)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """Say nothing: the address has the token."""
