"""The shipped CFD and AM studies with a constant batch: RASDA on 1, 2 and 4 slots is ASHA to the last bit.

    python benchmarks/constant_batch.py [am_meltpool ...] [--trials N] [--out FILE]

Each run does everything anew, from simulation to evaluation. Trials are judged synchronously, and at most 4
replicas share a batch. The claims, against ASHA at one rank a trial: the same trials go on and end, for
the same metrics in every epoch; the winner's tensors and its evaluation are the same bits; RASDA's trials did
run on 1, on 2, and on 1 to 4 ranks. `tests/integration/test_study_widths.py` shows it on a smaller study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import conclude
from study_widths import ran

from parsl_rasda.orchestration.events import EpochReported, ObserveTrial, StartJob, TrialFinished
from parsl_rasda.orchestration.journal import read
from parsl_rasda.runtime.checkpoints.checkpoint import read_tensors

STUDIES = ("cfd_defiltering", "am_meltpool")
SHARED = ("variant=synchronous", "max_workers=4", "batch=constant")
RUNS: Mapping[str, tuple[int, Sequence[str], list[int]]] = {  # slots, keys of the scheduler, world sizes
    "ASHA": (2, ("kind=asha", "growth=none"), [1]),
    "RASDA on 1 slot": (1, (), [1]),
    "RASDA on 2 slots": (2, ("num_workers=2",), [2]),
    "RASDA on 4 slots": (4, ("growth=strict",), [1, 2, 4]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", default=[*STUDIES], metavar="STUDY")
    parser.add_argument("--trials", type=int, help="Of each search, to try it out.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    claims: dict[str, bool] = {}
    for study in given.studies:
        with tempfile.TemporaryDirectory() as folder:
            found = {name: run_of(Path(folder), study, name, given.trials) for name in RUNS}
        rows[study] = {name: row for name, (row, _) in found.items()}
        for name, (row, came_to) in found.items():
            claims[f"{study}, {name}: world sizes"] = row["widths"] == RUNS[name][2]
            for what, value in came_to.items():
                claims[f"{study}, {name}: {what} as ASHA's"] = value == found["ASHA"][1][what]
    conclude({"what": f"shipped studies, {', '.join(SHARED)}", "runs": rows}, claims, given.out)


def run_of(folder: Path, study: str, name: str, trials: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a study; return what it took, and what must not depend on that."""
    slots, keys, _ = RUNS[name]
    row, document, run = ran(
        folder, study, slots, [*SHARED, *keys], name=name.replace(" ", "-"), trials=trials
    )
    checkpoint = Path(document["best"]["checkpoint"])
    evaluated = document["stages"]["evaluate"]["result"]
    return row, {
        **decisions_of(run),
        "winner's tensors": digest_of(checkpoint),
        "evaluation": {key: value for key, value in evaluated.items() if isinstance(value, float)},
    }


def decisions_of(run: Path) -> dict[str, Any]:
    """Return what the journal says of each trial: all but when, and on which GPUs."""
    records = list(read(run / "journal.jsonl"))
    told = [i for record in records for i in record.instructions]
    epochs = [r.event for r in records if isinstance(r.event, EpochReported)]
    return {
        "schedules": {(i.job.trial, i.schedule) for i in told if isinstance(i, StartJob)},
        "reports": {(e.job.trial, e.epoch): (dict(e.metrics), e.noise) for e in epochs},
        "rungs": {(i.trial, i.epoch): i.metric for i in told if isinstance(i, ObserveTrial)},
        "ends": {i.trial: (i.state, i.metric, i.reason) for i in told if isinstance(i, TrialFinished)},
    }


def digest_of(checkpoint: Path) -> str:
    """Return a digest of all tensors of a checkpoint, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(checkpoint).items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
