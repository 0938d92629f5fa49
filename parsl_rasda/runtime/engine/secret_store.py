"""The store by which ranks meet: torch.distributed's, for those alone who know its secret.

torch's `TCPStore` answers whoever reaches its port, who may list all keys, and write the addresses at which
ranks look for each other. Here rank 0 keeps a `HashStore` and serves it to those who know a secret, which is
in a file that only the job's user may read. Both ends prove it, by HMAC-SHA256 of two nonces. A stranger may
connect, and is told nothing. What ranks say is neither encrypted nor sealed: who can rewrite packets of the
network is not kept out.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import HashStore, Store  # the public names are untyped
from torch.distributed import DistNetworkError, DistStoreError

_NONCE_BYTES = 32
_PROOF_BYTES = 32
_PROOF_S = 10.0  # a stranger that says nothing is left
_FIRST_PAUSE_S = 0.001
_PAUSE_S = 0.05
_MARGIN_S = 10.0  # for an answer on its way
_UNANSWERED = ("set", "append", "multi_set")  # rank 0 may leave once it has read a value
_LENGTH = struct.Struct(">I")


def serve(listener: socket.socket, secret: str, patience: timedelta) -> Store:
    """Return a store of this process, and serve it to others as long as this process lives."""
    store = HashStore()
    store.set_timeout(patience)
    _start(lambda: _accept(listener, store, secret))
    return store


class SecretStore(Store):
    """The store of another process; as many threads as want to may use it, one at a time."""

    def __init__(self, host: str, port: int, secret: str, patience: timedelta) -> None:
        """Connect to it.

        Raises:
            RuntimeError: If there is no store, or if it is not the one that has this secret.
        """
        super().__init__()
        self.set_timeout(patience)
        self._place = host, port, secret
        self._lock = threading.Lock()
        self._clones: list[SecretStore] = []  # C++ does not keep an object of Python
        try:
            self._link = socket.create_connection((host, port), _PROOF_S)
            self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _prove_to_server(self._link, secret)
        except OSError as error:
            raise DistNetworkError(f"the store of rank 0 at {host} port {port}: {error}") from error

    def clone(self) -> SecretStore:
        """Return another connection to the same store."""
        self._clones.append(SecretStore(*self._place, self._patience))
        return self._clones[-1]

    def set(self, key: str, value: str | bytes) -> None:
        """Write a value."""
        self._ask("set", key, _text(value))

    def get(self, key: str) -> bytes:
        """Return a value, once there is one."""
        return self.multi_get([key])[0]

    def add(self, key: str, amount: int) -> int:
        """Add to a counter and return what it is then."""
        return int(self._ask("add", key, amount))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Write a value in the place of an expected one, and return which one there is then."""
        return _bytes(self._ask("compare_set", key, _text(expected), _text(desired)))

    def append(self, key: str, value: str | bytes) -> None:
        """Append to a value."""
        self._ask("append", key, _text(value))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Return several values, once all are there."""
        patience_s = self._patience.total_seconds()
        found = self._ask("multi_get", list(keys), patience_s, patience_s=patience_s)
        return [_bytes(value) for value in found]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Write several values."""
        self._ask("multi_set", list(keys), [_text(value) for value in values])

    def has_extended_api(self) -> bool:
        """Whether several values can be had at once."""
        return True

    def delete_key(self, key: str) -> bool:
        """Remove a value, and return whether there was one."""
        return bool(self._ask("delete_key", key))

    def num_keys(self) -> int:
        """Return how many values there are."""
        return int(self._ask("num_keys"))

    # C++ calls these two by its own names
    deleteKey = delete_key  # noqa: N815
    getNumKeys = num_keys  # noqa: N815

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all of these values are there."""
        return bool(self._ask("check", list(keys)))

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return when all of these values are there.

        Raises:
            DistStoreError: If they are not in time.
        """
        patience_s = (self._patience if timeout is None else timeout).total_seconds()
        self._ask("wait", list(keys), patience_s, patience_s=patience_s)

    @property
    def _patience(self) -> timedelta:
        patience: timedelta = self.timeout  # type: ignore[attr-defined]  # torch's stub lacks it
        return patience

    def _ask(self, name: str, *arguments: Any, patience_s: float = 0.0) -> Any:
        with self._lock:
            try:
                self._link.settimeout(patience_s + _MARGIN_S)
                _send(self._link, [name, *arguments])
                if name in _UNANSWERED:
                    return None
                is_answer, content = _receive(self._link)
            except (OSError, ValueError) as error:
                self._link.close()  # an answer may be on its way, which would be taken for another one
                raise DistNetworkError(f"rank 0, which has the store, is gone: {error}") from error
        if not is_answer:
            raise DistStoreError(content)
        return content


# --------------------------------------------------------------------------------------- on rank 0


def _accept(listener: socket.socket, store: HashStore, secret: str) -> None:
    while True:
        try:
            link, _ = listener.accept()
        except OSError:  # of one connection, which was broken off, or there are too many
            time.sleep(_PAUSE_S)
            continue
        _start(lambda link=link: _serve_one(link, store, secret))  # type: ignore[misc]  # bound at once


def _serve_one(link: socket.socket, store: HashStore, secret: str) -> None:
    """Answer one rank until it leaves; a stranger gets a nonce and nothing else."""
    with link, contextlib.suppress(OSError, ValueError):
        link.settimeout(_PROOF_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not _is_one_of_us(link, secret):
            return
        link.settimeout(None)
        while True:
            name, *arguments = _receive(link)
            if name in _UNANSWERED:
                _ANSWERS[name](store, *arguments)
                continue
            try:
                answer = True, _ANSWERS[name](store, *arguments)
            except (RuntimeError, LookupError) as error:
                answer = False, str(error)
            _send(link, answer)


def _wait(store: HashStore, keys: list[str], patience_s: float) -> None:
    """Wait in Python: a thread that waits in C++ when Python ends brings the whole process down."""
    began = time.monotonic()
    while not store.check(keys):
        waited_s = time.monotonic() - began
        if waited_s > patience_s:
            raise DistStoreError(f"no {', '.join(keys)} within {patience_s:g} s")
        time.sleep(min(max(_FIRST_PAUSE_S, waited_s / 10), _PAUSE_S))


def _when_there(store: HashStore, keys: list[str], patience_s: float) -> list[str]:
    _wait(store, keys, patience_s)
    return [_text(value) for value in store.multi_get(keys)]


_ANSWERS: dict[str, Callable[..., Any]] = {
    "set": lambda store, key, value: store.set(key, _bytes(value)),
    "add": lambda store, key, amount: store.add(key, amount),
    "compare_set": lambda store, key, *values: _text(store.compare_set(key, *map(_bytes, values))),
    "append": lambda store, key, value: store.append(key, _bytes(value)),
    "multi_get": _when_there,
    "multi_set": lambda store, keys, values: store.multi_set(keys, [_bytes(value) for value in values]),
    "delete_key": lambda store, key: store.delete_key(key),
    "num_keys": lambda store: store.num_keys(),
    "check": lambda store, keys: store.check(keys),
    "wait": _wait,
}


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="rasda-store", daemon=True).start()


# ----------------------------------------------------------------------------------- on both sides


def _is_one_of_us(link: socket.socket, secret: str) -> bool:
    ours = secrets.token_bytes(_NONCE_BYTES)
    link.sendall(ours)
    theirs, proof = _exactly(link, _NONCE_BYTES), _exactly(link, _PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, b"rank", ours + theirs)):
        return False
    link.sendall(_proof(secret, b"store", ours + theirs))
    return True


def _prove_to_server(link: socket.socket, secret: str) -> None:
    ours, theirs = secrets.token_bytes(_NONCE_BYTES), _exactly(link, _NONCE_BYTES)
    link.sendall(ours + _proof(secret, b"rank", theirs + ours))
    if not hmac.compare_digest(_exactly(link, _PROOF_BYTES), _proof(secret, b"store", theirs + ours)):
        raise ConnectionRefusedError("it does not know the secret of this job")


def _proof(secret: str, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret.encode(), role + nonces, "sha256")


def _send(link: socket.socket, message: Any) -> None:
    content = json.dumps(message).encode()
    link.sendall(_LENGTH.pack(len(content)) + content)


def _receive(link: socket.socket) -> Any:
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    return json.loads(_exactly(link, length))


def _exactly(link: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        piece = link.recv(count - len(content))
        if not piece:
            raise ConnectionResetError("the connection was closed")
        content += piece
    return bytes(content)


def _text(value: str | bytes) -> str:
    """Return bytes as JSON can hold them."""
    return (value.encode() if isinstance(value, str) else bytes(value)).decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
