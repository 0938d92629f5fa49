"""Validate many mutated study and site files in this process: no traceback, always file:line, none over 2 s.

    python benchmarks/mutations.py --count 100000 --parts 4

Prints what went wrong, the slowest file and files per second; the exit code is 1 if anything went wrong.
The files are those of tests/unit/study/mutations.py; a part is a process and a seed of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from parsl_rasda.cli.options import load_inputs
from parsl_rasda.errors import PlacementImpossibleError, RasdaError
from tests.unit.study.mutations import DIAGNOSTIC, VARIABLES, cases

LONGEST_S = 2.0


def judge(seed: int, count: int) -> tuple[Counter[str], list[str], float]:
    """Return how the files of a seed ended, what went wrong, and the longest time [s]."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    os.environ.update(VARIABLES)
    with tempfile.TemporaryDirectory() as folder:
        for number, (study, site) in enumerate(cases(seed, count, Path(folder))):
            began = time.process_time()
            try:
                load_inputs(study, [str(site)])
                ends["accepted"] += 1
            except PlacementImpossibleError:
                ends["too large for the site"] += 1
            except RasdaError as error:
                ends["refused"] += 1
                if odd := [line for line in str(error).split("\n") if not DIAGNOSTIC.match(line)]:
                    wrong.append(f"seed {seed} number {number}: {odd[0][:300]}")
            except Exception:  # noqa: BLE001 - each is a find
                wrong.append(
                    f"seed {seed} number {number}: {''.join(traceback.format_exc().splitlines(True)[-5:])}"
                )
            took = time.process_time() - began
            slowest = max(slowest, took)
            if took > LONGEST_S:
                wrong.append(f"seed {seed} number {number}: {took:.1f} s")
    return ends, wrong, slowest


def main() -> None:
    """Judge the files in several processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(given.parts) as pool:
        share = -(-given.count // given.parts)
        seeds = range(given.seed * 1000, given.seed * 1000 + given.parts)
        found = pool.starmap(judge, [(seed, share) for seed in seeds])
    ends = sum((each[0] for each in found), Counter())
    wrong = [line for each in found for line in each[1]]
    for line in wrong[:50]:
        print(line)
    rate = sum(ends.values()) / (time.monotonic() - began)
    slowest = max(each[2] for each in found)
    print(f"{dict(ends)}, {len(wrong)} wrong, slowest {slowest:.2f} s, {rate:.0f}/s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
