"""What `doctor` makes of what surrounds a job: disks, the folder for sockets, the network: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parsl_rasda.devices import DEVICE_MASKS
from parsl_rasda.doctor.findings import Finding, ProbeResult, Rating, good_if
from parsl_rasda.study import SiteBase

_SOCKET_PATH = 107  # bytes that Linux has for one, unix(7)
_SOCKET_NAME = 32  # of multiprocessing's sockets: /pymp-abcdefgh/listener-abcdefgh
_LITTLE_BYTES, _LITTLE_FILES = 10 * 10**9, 10_000
_TOO_LITTLE_BYTES, _TOO_LITTLE_FILES = 10**9, 100
_SLOW = 0.05  # of the bandwidth within a node; NVLink is ten times as fast as a good network
_SLOW_CORES = 0.2  # where both go over sockets
_WORKER_INIT_LINES = 3


def storage_findings(found: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether the folder of runs has space, and whether sockets have (`probes.storage`)."""
    free, files = found["bytes"], found["files"]
    words = f"{free / 1e9:.0f} GB" + (f" and {files} files" if files is not None else "") + " free"
    is_bad = free < _TOO_LITTLE_BYTES or (files is not None and files < _TOO_LITTLE_FILES)
    yield good_if(
        free >= _LITTLE_BYTES and (files is None or files >= _LITTLE_FILES),
        "space",
        found["error"] or f"{words}, quotas apart",
        "checkpoints, results and logs go to work_dir: choose one with more room, and see your quotas there",
        otherwise=Rating.BAD if is_bad else Rating.DOUBTFUL,
    )
    room = _SOCKET_PATH - len(found["temporary"].encode())
    yield good_if(
        room >= _SOCKET_NAME,
        "TMPDIR",
        found["temporary"],
        f"it is {_SOCKET_NAME - room} characters too long for sockets of data loaders and pools: "
        "`export TMPDIR=/tmp` in worker_init",
        otherwise=Rating.BAD,
    )


def network_finding(narrow: ProbeResult, wide: ProbeResult, site: SiteBase) -> Finding:
    """Return whether two nodes exchange about as fast as they should, and over what.

    Args:
        narrow: A job on one node.
        wide: One on two.
        site: Whose nodes they are.
    """
    transports = sorted({r["transport"] for r in wide.ranks if r.get("transport")})
    has_gpus = site.accelerator in DEVICE_MASKS
    share = wide.gb_s / narrow.gb_s if narrow.gb_s else None
    found = f"{wide.gb_s:.2f} GB/s between 2 nodes"
    found += f", {narrow.gb_s:.2f} within 1" if narrow.gb_s else ""
    found += f", over {' and '.join(transports)}" if transports else ""
    if "Socket" in transports:
        reason = (
            "NCCL goes over TCP: no plug-in for this network (a module of aws-ofi-nccl or aws-ofi-rccl; "
            "NCCL_NET makes its absence an error), or no access to InfiniBand (NCCL_IB_DISABLE, NCCL_IB_HCA)"
        )
        return Finding("network", found, Rating.DOUBTFUL, reason)
    slow = _SLOW if has_gpus else _SLOW_CORES
    names = "NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME" if has_gpus else "GLOO_SOCKET_IFNAME"
    reason = f"slow for its nodes: `environment` may name a slow interface, or none ({names})"
    reason += ", or NCCL_NET_GDR_LEVEL keeps it from the GPUs' memory" if has_gpus else ""
    return good_if(share is None or share >= slow, "network", found, reason, otherwise=Rating.DOUBTFUL)


def worker_init_finding(said: str) -> Finding:
    """Return what a pilot's job script wrote to stderr before its workers came."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    advice = "look at each line: a module that is not there leaves another program in its place"
    found = " | ".join(lines[-_WORKER_INIT_LINES:]) or "said nothing"
    return good_if(not lines, "worker_init", found, advice, otherwise=Rating.DOUBTFUL)
