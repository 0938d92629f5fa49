"""Shuffled reading by `parsl_rasda.data` against plain sequential reading of the same files, caches dropped.

    python benchmarks/reader.py [--dir /tmp] [--out benchmarks/results/reader.json]

Samples are fp16 (3, 128, 128), shards HDF5 (Zarr beside it), first 128 MB of them, then 1 GB. Three ways,
in turn, each in a process of its own and with the files' pages dropped (posix_fadvise):

raw       the files' bytes into one buffer, in order: nothing can be faster, and nothing comes of it
arrays    the same library, slice after slice in order: what a plain loop over the file costs
shuffled  an epoch of batches by `parsl_rasda.data`, as a rank with one replica reads it

The claims, for either format and amount; exit code 1 if one is false: shuffled is at least 0.9 times as fast
as arrays (raw is for information), and memory grows by less than 64 MB when the data grow 8-fold. Ratios
are of neighbouring passes; medians over the rounds. Files are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from parsl_rasda.data import ShardWriter, open_shards

SHAPE = (3, 128, 128)
SAMPLES = {"128 MB": 1365, "1 GB": 10922}
SAMPLES_PER_SHARD = 1024
BATCH = 16
ROUNDS = 7
LEAST_RATIO, MOST_GROWTH_MB = 0.9, 64
SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pass", dest="how", nargs=2, metavar=("HOW", "FOLDER"), help="one pass, for itself")
    arguments = parser.parse_args()
    if arguments.how:
        print(json.dumps(one_pass(*arguments.how)))
        return
    found = measure(arguments.dir)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(bool(found["broken_claims"]))


def measure(directory: Path | None) -> dict[str, object]:
    """Return throughput and memory, by format and amount of data."""
    rows: list[dict[str, Any]] = []
    for kind in ("hdf5", "zarr"):
        for name, samples in SAMPLES.items():
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                write(folder, samples, kind)
                rows.append({"format": kind, "data": name} | compare(folder))
                print(rows[-1], file=sys.stderr, flush=True)
    growth = {
        kind: round(large["peak_growth_mb"] - small["peak_growth_mb"], 1)
        for kind, (small, large) in (("hdf5", rows[:2]), ("zarr", rows[2:]))
    }
    return {
        "what": "a shuffled epoch of batches against sequential passes over the same files, caches dropped",
        "samples": f"fp16 {SHAPE}, blocks of 16, {SAMPLES_PER_SHARD} a shard, batches of {BATCH}",
        "rounds": ROUNDS,
        "seed": SEED,
        "rows": rows,
        "peak_rss_growth_when_data_grow_8_fold_mb": growth,
        "python": platform.python_version(),
        "h5py": h5py.__version__,
        "zarr": zarr.__version__,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "broken_claims": list(broken(rows, growth)),
    }


def broken(rows: list[dict[str, Any]], growth: dict[str, float]) -> Iterator[str]:
    for row in rows:
        if (median := row["shuffled_over_arrays"]["median"]) < LEAST_RATIO:
            yield f"{row['format']}, {row['data']}: {median} of a plain pass, not {LEAST_RATIO}"
    for kind, megabytes in growth.items():
        if megabytes >= MOST_GROWTH_MB:
            yield f"{kind}: {megabytes} MB more memory, not below {MOST_GROWTH_MB}"


def write(folder: str, samples: int, kind: str) -> None:
    random = np.random.default_rng(SEED)
    with ShardWriter(folder, samples_per_shard=SAMPLES_PER_SHARD, format=kind) as shards:
        for begin in range(0, samples, 256):
            shape = (min(256, samples - begin), *SHAPE)
            shards.write("train", field=random.integers(0, 2**14, shape, dtype=np.uint16).view(np.float16))


def compare(folder: str) -> dict[str, object]:
    """Return medians over the rounds, and the memory of the largest."""
    ways = ["raw", "arrays", "shuffled"]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in [*ways, "shuffled8"]}
    for number in range(ROUNDS):
        turn = number % len(ways)
        for way in ways[turn:] + ways[:turn]:
            found[way].append(in_own_process(way, folder))
    found["shuffled8"].append(in_own_process("shuffled8", folder))
    return {
        "mb_s": {way: round(statistics.median(p["mb_s"] for p in passes)) for way, passes in found.items()},
        "best_mb_s": {way: round(max(p["mb_s"] for p in passes)) for way, passes in found.items()},
        "shuffled_over_arrays": ratio(found, "arrays"),
        "shuffled_over_raw": ratio(found, "raw"),
        "peak_growth_mb": round(max(p["growth_mb"] for p in found["shuffled"]), 1),
        "peak_growth_of_8_replicas_on_a_rank_mb": round(found["shuffled8"][0]["growth_mb"], 1),
    }


def in_own_process(way: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--pass", way, folder]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def ratio(found: dict[str, list[dict[str, float]]], other: str) -> dict[str, object]:
    ratios = sorted(
        mine["mb_s"] / theirs["mb_s"] for mine, theirs in zip(found["shuffled"], found[other], strict=True)
    )
    return {"median": round(statistics.median(ratios), 2), "all": [round(r, 2) for r in ratios]}


def one_pass(how: str, folder: str) -> dict[str, float]:
    """Read everything once, in this process; returns throughput and growth of the peak memory."""
    import torch  # noqa: F401 # before memory is looked at

    files = sorted(str(p) for p in Path(folder).rglob("*") if p.is_file() and p.name != "index.json")
    for file in files:
        drop(file)
    before = resident_mb("VmRSS")
    began = time.perf_counter()
    size = {"raw": raw, "arrays": in_order}.get(how, shuffled)(folder, files, how)
    seconds = time.perf_counter() - began
    return {"mb_s": size / seconds / 1e6, "growth_mb": resident_mb("VmHWM") - before}


def raw(folder: str, files: list[str], how: str) -> int:
    buffer, size = bytearray(4 << 20), 0
    for file in files:
        with Path(file).open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                size += count
    return size


def in_order(folder: str, files: list[str], how: str) -> int:
    size = 0
    for path in sorted(str(p) for p in Path(folder).iterdir() if p.name != "index.json"):
        if path.endswith(".h5"):
            with h5py.File(path) as shard:
                size += slices(shard["field"])
        else:
            size += slices(zarr.open_group(path, mode="r")["field"])
    return size


def slices(field: h5py.Dataset | zarr.Array) -> int:
    return sum(field[at : at + BATCH].nbytes for at in range(0, field.shape[0], BATCH))


def shuffled(folder: str, files: list[str], how: str) -> int:
    """Read as a rank that carries one replica does, or eight in turn."""
    data = open_shards(folder, arrays="field")
    order, streams = data.order(SEED, 0), 8 if how == "shuffled8" else 1
    each = -(-len(data) // streams)
    reads = (
        order[stream * each + at : min(stream * each + at + BATCH, (stream + 1) * each)]
        for at in range(0, each, BATCH)
        for stream in range(streams)
    )
    return sum(batch.nbytes for batch in data.stream(reads, streams=streams))


def drop(file: str) -> None:
    """Drop the pages that the system keeps of a file."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
