"""Reads the file of an offline run of Weights & Biases: records in the format of LevelDB's log."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7  # ":W&B", magic, version


def records_in(file: Path) -> Iterator[bytes]:
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = HEADER, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # full, or the last part
            yield whole
            whole = b""


def history_in(file: Path) -> Iterator[dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    for data in records_in(file):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
