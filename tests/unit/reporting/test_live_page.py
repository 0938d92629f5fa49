"""The report as a page that follows a run: for whoever has the token, on this machine only."""

from __future__ import annotations

import html
import json
import os
import re
import select
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urljoin, urlsplit

import pytest

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.reporting.live_page import live_page


@pytest.fixture
def address(finished):
    with live_page(finished, 0, 0.02) as found:
        yield found


def answer_of(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_who_has_the_address_reads_the_page_and_it_may_listen_to_itself_only(address) -> None:
    status, text, headers = answer_of(address)
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Learning curves" in text
    assert "connect-src 'self'" in text
    assert 'data-events="events?token=' in text
    assert urlsplit(address).hostname == "127.0.0.1"


def test_nobody_else_reads_anything(address) -> None:
    bare = address.partition("?")[0]
    for wrong in (bare, f"{bare}?token=", f"{bare}events", f"{address}x", bare + "?token=ä".encode().hex()):
        assert answer_of(wrong)[0] == 403
    status, text, _ = answer_of(address, Host="a.site.of.others:80")
    assert (status, "Learning curves" in text) == (403, False)
    assert answer_of(address.replace("/?", "/secret?"))[0] == 404


def test_a_change_of_the_journal_is_told(address, finished) -> None:
    events = address.replace("/?", "/events?")
    with urllib.request.urlopen(events, timeout=20) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert stream.readline() == b": follows\n"
        with (finished / "journal.jsonl").open("ab") as journal:
            journal.write(b"{")
        assert stream.readline() == b"\n"
        assert stream.readline() == b"data: changed\n"


def events_of(address):
    """Return where the page that is served now listens."""
    events = re.search('data-events="([^"]+)"', answer_of(address)[1])[1]
    return urljoin(address, html.unescape(events))


def first_event_of(events):
    """Return what a page is told first."""
    with urllib.request.urlopen(events, timeout=20) as stream:
        return next(line for line in stream if line.startswith(b"data: "))


def test_a_change_since_the_page_was_made_is_told_at_once(address, finished) -> None:
    events = events_of(address)
    with (finished / "journal.jsonl").open("ab") as journal:
        journal.write(b"{")
    assert first_event_of(events) == b"data: changed\n"


def test_the_death_of_the_controller_is_told(address, finished) -> None:
    claims = "import sys, pathlib; from parsl_rasda.orchestration.controllers import claim"
    claims += "; claim(pathlib.Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    words, pipe = (sys.executable, "-c", claims, str(finished)), subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as controller:
        controller.stdout.readline()
        with live_page(finished, 0, 0.02) as follows:
            events = events_of(follows)
            controller.kill()
            controller.wait()
            assert first_event_of(events) == b"data: changed\n"


def test_a_page_that_is_older_than_the_run_is_told_before_any_time_passes(finished) -> None:
    with live_page(finished, 0, 60.0) as address:
        assert first_event_of(address.replace("/?", "/events?state=older&")) == b"data: changed\n"


def test_who_asks_often_gets_one_page_until_the_next_is_due(finished) -> None:
    with live_page(finished, 0, 60.0) as address:
        before = answer_of(address)[1]
        (finished / "journal.jsonl").unlink()
        assert answer_of(address)[1] == before
    with live_page(finished, 0, 60.0) as address:
        assert "has not begun" in answer_of(address)[1]


def test_an_address_that_is_none_is_answered(address) -> None:
    there = urlsplit(address)
    with socket.create_connection((there.hostname, there.port), timeout=20) as connection:
        connection.sendall(b"GET http://[/ HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


def test_a_port_that_is_taken_is_refused_in_one_sentence(address, finished) -> None:
    port = urlsplit(address).port
    with pytest.raises(InvalidSettingError, match=f"--web: found {port}"), live_page(finished, port):
        pass


class Browser:
    """A browser that is asked by the pipe of its tools for developers."""

    def __init__(self, profile):
        asked, self._ask = os.pipe()
        self._answers, answered = os.pipe()
        words = "chromium --headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir"
        shell = f'exec {words}="$1" 3<&{asked} 4>&{answered}'
        self._process = subprocess.Popen(
            ("bash", "-c", shell, "browser", str(profile)),
            pass_fds=(asked, answered),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(asked)
        os.close(answered)
        self._count, self._text, self.complaints = 0, b"", []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    def tell(self, method, **params):
        self._count += 1
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        message = {"id": self._count, "method": method, "params": params, **session}
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        return self._count

    def answer(self, number, patience_s):
        """Return the answer to what was told, or None if it does not come in time."""
        while True:
            *whole, self._text = self._text.split(b"\0")
            found = None
            for message in map(json.loads, whole):
                if message.get("id") == number:
                    found = message["result"]
                elif message.get("method") in {"Log.entryAdded", "Runtime.exceptionThrown"}:
                    self.complaints.append(message["params"])
            if found is not None:
                return found
            if not select.select([self._answers], [], [], patience_s)[0]:
                return None
            self._text += os.read(self._answers, 1 << 16)

    def ask(self, method, **params):
        found = self.answer(self.tell(method, **params), 60.0)
        assert found is not None, method
        return found

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._ask)
        os.close(self._answers)


def test_an_open_page_takes_over_what_is_new_and_complains_of_nothing(address, finished, need, tmp_path):
    need("chromium")
    browser = Browser(tmp_path / "profile")
    try:
        browser.ask("Page.navigate", url=address)
        expression = """new Promise((done) => {
          const wait = () => document.querySelector("main")
            ? new MutationObserver(() => done(document.querySelectorAll("main h3").length))
                .observe(document.body, {childList: true})
            : setTimeout(wait, 50);
          wait();
        })"""
        told = browser.tell("Runtime.evaluate", expression=expression, awaitPromise=True)
        for _ in range(100):  # it may begin to listen after the first change
            with (finished / "journal.jsonl").open("ab") as journal:
                journal.write(b"{")
            if (answer := browser.answer(told, 0.2)) is not None:
                break
        else:
            raise AssertionError("the page did not hear of a change")
        assert answer["result"]["value"] > 6, answer
        expression = """(async () => {
          let asked = 0;
          const before = fetch;
          window.fetch = (...words) => { asked += 1; return before(...words); };
          await Promise.all([refresh(), refresh(), refresh()]);
          window.fetch = before;
          return asked;
        })()"""
        answer = browser.ask("Runtime.evaluate", expression=expression, awaitPromise=True)
        assert answer["result"]["value"] <= 2, "one, and one more for what came meanwhile"
        assert browser.complaints == []
    finally:
        browser.close()
