"""Ports for servers of tests: none that a client could get as its own while the server is away."""

from __future__ import annotations

import os
import socket

_STEP = 40
# Linux gives clients ports from 32768 on; a server that comes back would find its port taken by one of them.
_PORTS = range(10_000, 32_000, _STEP)


def free_ports(count: int) -> range:
    """Return a row of ports that nobody listens at; `count` is at most 40."""
    start = os.getpid() % len(_PORTS)
    for first in (*_PORTS[start:], *_PORTS[:start]):
        row = range(first, first + count)
        if all(_is_free(port) for port in row):
            return row
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
