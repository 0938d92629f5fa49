"""How good the winner is, and what it cost: ASHA, RASDA and random search on the shipped studies, by seed.

    python benchmarks/quality.py FOLDER [--studies cv_resnet ...] [--seeds 0 1 ...] [--arms asha ...]
                                 [--parts N] [--out benchmarks/results/quality.json] [--figure quality.svg]
                                 [--table quality.md]

A part is one study, one seed and one arm. What a part has come to is a file of FOLDER, and a part that is
there, or in the file of ``--out``, is not run again: stop it whenever you like, and call it again.
``--parts 1`` runs one and ends; ``--parts 0`` only adds up what is there. There are 440 parts.

All trials are trained here, on one core, each stretch once for all parts that have it in common
(`trained_trials.py`). The searches are those of the real state machine, whose clock is that of 16 emulated
slots (`emulated_search.py`). Validation and test metric are the same bits as of a run in which trials arrive
in that order. Only the seed, the scheduler and, for random search, the number of trials differ between the
parts of a study. The claims, which are made where all seeds of a study are there: the validation metric of
RASDA's winner, with the batch that the study declares, is at most 5 % worse than that of ASHA's with the same
seed, in the median over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from claims import conclude
from quality_parts import ARMS, SEEDS, STUDIES, Part, asha_of, declared_arm, result_of
from quality_table import as_markdown, drawn, tabulated

from parsl_rasda.atomic_files import replace_file

WORSE = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Where parts are run and their results are kept.")
    parser.add_argument("--studies", nargs="*", choices=[*STUDIES], default=[*STUDIES])
    parser.add_argument("--seeds", nargs="*", type=int, default=[*range(SEEDS)])
    parser.add_argument("--arms", nargs="*", choices=[*ARMS], default=[*ARMS])
    parser.add_argument("--parts", type=int, help="Run so many at most.")
    parser.add_argument("--trials", type=int, help="Of a search, to try it out: nothing is claimed.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, help="An SVG or PNG file; needs matplotlib.")
    parser.add_argument("--table", type=Path, help="A file for the medians, in Markdown.")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in a run: sums depend on it
    wanted = list(parts_of(given.studies, given.seeds, given.arms))
    if given.out and given.out.exists():
        take_over(given.out, given.folder)
    run_some(wanted, given.folder, given.parts, given.trials)
    found = [part for path in sorted((given.folder / "parts").glob("*.json")) for part in read_part(path)]
    tables = tabulated(found)
    if given.table:
        given.table.write_text(as_markdown(tables) + "\n", encoding="utf-8")
    if given.figure:
        drawn(tables, given.figure)
    what = "shipped studies by arm: medians over seeds, 95 % bootstrap intervals, ratios to ASHA by seed"
    arms = {name: arm.what for name, arm in ARMS.items()}
    claims = {} if any(part["trials"] for part in found) else dict(claims_of(tables))
    conclude({"what": what, "arms": arms, "tables": tables, "parts": found}, claims, given.out)


def parts_of(studies: Sequence[str], seeds: Sequence[int], arms: Sequence[str]) -> Iterator[Part]:
    """Yield the parts, seed by seed: what there is after some time is of every study. ASHA's come first."""
    for seed in seeds:
        for study in studies:
            yield from (Part(study, seed, arm) for arm in sorted(arms, key=[*ARMS].index))


def take_over(out: Path, folder: Path) -> None:
    """Put the parts of an earlier call, perhaps on another machine, where parts are kept."""
    for part in json.loads(out.read_text(encoding="utf-8"))["parts"]:
        place = folder / "parts" / f"{Part(part['study'], part['seed'], part['arm']).name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            replace_file(place, json.dumps(part, indent=1) + "\n")


def run_some(wanted: Sequence[Part], folder: Path, most: int | None, trials: int | None) -> None:
    """Run the parts that are missing, each study in a process of its own."""
    left = len(wanted) if most is None else most
    with ExitStack() as stack:
        processes: dict[str, ProcessPoolExecutor] = {}
        for part in wanted:
            place = folder / "parts" / f"{part.name}.json"
            if place.exists() or left == 0:
                continue
            needed, asha = asha_of(part), None
            if needed is not None:
                file = folder / "parts" / f"{needed.name}.json"
                if not file.exists():
                    print(f"{part.name}: waits for {file.name}", file=sys.stderr)
                    continue
                asha = json.loads(file.read_text(encoding="utf-8"))
            left -= 1
            if part.study not in processes:
                new = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                processes[part.study] = stack.enter_context(new)
            processes[part.study].submit(result_of, part, folder, place, asha=asha, trials=trials).result()


def read_part(path: Path) -> Iterator[dict[str, object]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["arm"] in ARMS:
        yield found


def claims_of(tables: dict[str, dict[str, dict[str, object]]]) -> Iterator[tuple[str, bool]]:
    """Yield the claims about studies of which all seeds are there."""
    for study, arms in tables.items():
        row = arms.get(declared_arm(study), {})
        ratio = row.get("validation_to_asha")
        if isinstance(ratio, dict) and ratio["seeds"] >= SEEDS:
            yield f"{study}: as good as ASHA within 5 %", ratio["median"] <= WORSE


if __name__ == "__main__":
    main()
