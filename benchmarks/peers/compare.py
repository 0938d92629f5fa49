"""Emulated studies on our stack, on Ray Tune, and without any overhead: whole commands, interleaved.

    make peers                                              # once: the peers' environment
    python benchmarks/peers/compare.py [--repeats 3] [--out benchmarks/results/peers.json]

Each system trains the same epochs: ours by `variant: synchronous`, Ray's RASDA and ASHA by the table of the
same halving (`rasda_ray.py`). Emulated means that trials sleep: what is compared is the time between epochs.
Ours is the whole command `parsl-rasda run` with its pilot; Ray's time begins after `ray.init`. ``where`` says
what our time from the pilot on is made of, in seconds of the whole pilot: epochs, starts (from the decision
to the first epoch), boundaries, leaving, idle. Ray is given up after ``--timeout``, which it takes at least.

The claims, medians (exit code 1 if one is false):

- 16 trials, 4 s: from the first pilot on at most 1.25 x the bound, the whole command at most 1.25 x + 2 s and
  at most 0.3 x Ray's RASDA;
- 64 trials, 0.4 s: the whole command at most 0.1 x Ray's RASDA;
- slots are inside epochs at least 0.85 times as much as in the bound, from the pilot on;
- `plan --from` the first run foretells the median makespan within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(REPOSITORY)]

from claims import conclude  # noqa: E402 - found above
from emulation import CASES, Case  # noqa: E402

COMMAND = Path(sys.executable).parent / "parsl-rasda"
SITE = (
    "provider: {type: LocalProvider}\naccelerator: none\nmpi_launcher: process\ngpus_per_node: 4\nnodes: %d\n"
)
LIMITS = {"16 x 16, 4 s": 0.3, "64 x 16, 0.4 s": 0.1}  # of Ray's RASDA
OF_BOUND, COMMAND_MORE_S, BUSY, FORETOLD = 1.25, 2.0, 0.85, 0.10
MOST_OF_BOUND = "16 x 16, 4 s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES, metavar="CASE")
    parser.add_argument("--ray", type=Path, default=HERE / ".venv/bin/python", help="a Python with ray[tune]")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--timeout", type=float, default=420.0, help="of one study on Ray [s]")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.without_ray and not given.ray.exists():
        parser.error(f"{given.ray} is missing: run `make peers`, or give --without-ray")
    rows, claims = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.cases:
            row = measured(CASES[name], Path(folder) / str(len(rows)), given)
            rows[name], holds = row, claims_of(name, row)
            claims |= {f"{name}: {claim}": found for claim, found in holds.items()}
    conclude({"what": "emulated studies, the same epochs in each system", "cases": rows}, claims, given.out)


def measured(case: Case, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a case: each repeat runs every system once, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "ray_rasda": [], "ray_asha": []}
    for repeat in range(given.repeats):
        turn = [*runs][repeat % 3 :] + [*runs][: repeat % 3]
        for system in turn:
            if system == "ours":
                runs[system].append(ours(case, folder / str(repeat)))
            elif not given.without_ray and not any(r["timed_out"] for r in runs[system]):
                runs[system].append(on_ray(case, given, rasda=system == "ray_rasda"))
    row: dict[str, Any] = {
        "epochs": case.epochs,
        "bound_s": round(case.bound_s(), 2),
        "asha_bound_s": round(case.bound_s(grows=False), 2),
        "plan_s": foretold(case, folder / "0"),
    }
    return row | {name: {"median": medians(found), "runs": found} for name, found in runs.items() if found}


def ours(case: Case, folder: Path) -> dict[str, Any]:
    """Run the emulated study of `workflows/` by the command line."""
    folder.mkdir(parents=True)
    site = folder / "emulated.yaml"
    site.write_text(SITE % (case.slots // 4), encoding="utf-8")
    words = [
        str(COMMAND),
        "run",
        *study_words(case),
        "--site",
        str(site),
        "--dir",
        str(folder / "run"),
        "--json",
    ]
    begin = time.time()
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    command_s = time.time() - begin
    found = journal_figures(folder / "run", case)
    document = json.loads(done.stdout)
    return {"command_s": round(command_s, 2), "makespan_s": document["makespan_s"], **found}


def study_words(case: Case) -> list[str]:
    """Return the study file and what is set in it."""
    changes = {
        "with.epoch_s": case.epoch_s,
        "with.efficiency": 1.0,
        "tune.num_samples": case.trials,
        "tune.scheduler.max_t": case.max_t,
        "tune.scheduler.max_workers": case.slots,
        "tune.scheduler.variant": "synchronous",
        "tune.estimates.epoch_s": case.epoch_s,
        "tune.estimates.efficiency": 1.0,
    }
    file = REPOSITORY / "workflows" / "emulated" / "study.yaml"
    return [str(file), *(word for key, value in changes.items() for word in ("--set", f"{key}={value}"))]


def journal_figures(run: Path, case: Case) -> dict[str, Any]:
    """Return what the journal of a run says from its pilot on."""
    from parsl_rasda.orchestration.events import PilotStarted
    from parsl_rasda.reporting.runs import read_run

    (history,) = read_run(run).searches.values()
    usage = history.usage
    started = next(r.event.at for r in history.records if isinstance(r.event, PilotStarted))
    ended = usage.finished_at
    if usage.epochs != case.epochs or ended is None:
        raise RuntimeError(f"{usage.epochs} epochs in {run}, not {case.epochs}")
    span_s = ended - started
    return {
        "pilot_s": round(started - next(iter(history.records)).event.at, 2),
        "from_pilot_s": round(span_s, 2),
        "busy_fraction": round(usage.busy_gpu_s / (case.slots * span_s), 3),
        "where": where(history, span_s, case.slots),
    }


def where(history: Any, span_s: float, slots: int) -> dict[str, float]:
    """Return what slots did from the pilot on, in seconds of the whole pilot; these add up to its time."""
    from parsl_rasda.orchestration.events import EndJob, EpochReported, JobEnded, StartJob

    widths: dict[Any, int] = {}
    since: dict[Any, tuple[float, str]] = {}
    spent = dict.fromkeys(("epochs", "starts", "boundaries", "leaving"), 0.0)
    for record in history.records:
        event, at = record.event, record.event.at
        match event:
            case EpochReported(job=job) if job in widths:
                began, kind = since.get(job, (at - event.seconds, "starts"))
                spent["epochs"] += widths[job] * event.seconds
                spent[kind] += widths[job] * max(0.0, at - event.seconds - began)
                since[job] = at, "boundaries"
            case JobEnded(job=job) if job in widths:
                began, kind = since.pop(job)
                spent[kind] += widths.pop(job) * (at - began)
        for instruction in record.instructions:
            match instruction:
                case StartJob(job=job, placement=placement):
                    widths[job], since[job] = placement.world_size, (at, "starts")
                case EndJob(job=job) if job in since:
                    began, kind = since[job]  # waits for its decision until now
                    spent[kind] += widths[job] * (at - began)
                    since[job] = at, "leaving"
    found = {kind: round(seconds / slots, 2) for kind, seconds in spent.items()}
    return found | {"idle": round(span_s - sum(spent.values()) / slots, 2)}


def on_ray(case: Case, given: argparse.Namespace, *, rasda: bool) -> dict[str, Any]:
    """Run the study on Ray, in the peers' environment."""
    words = [str(given.ray), str(HERE / "rasda_ray.py"), case.name, "--timeout", str(given.timeout)]
    words += ["--rasda"] * rasda
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, check=True, timeout=given.timeout + 120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["timed_out"] and (found["errors"] or found["epochs"] != case.epochs):
        raise RuntimeError(f"Ray trained other epochs, or failed: {found}")
    return dict(found)


def foretold(case: Case, folder: Path) -> float:
    """Return the makespan that `plan` foresees with the times of a run [s]."""
    words = [str(COMMAND), "plan", *study_words(case), "--site", str(folder / "emulated.yaml")]
    done = subprocess.run(
        [*words, "--from", str(folder / "run"), "--json"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        check=True,
    )
    (stage,) = json.loads(done.stdout)["stages"]
    return next(float(p["makespan_s"]) for p in stage["policies"] if p["is_declared"])


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    numbers = [k for k, v in runs[0].items() if isinstance(v, float)]
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in numbers}


def claims_of(name: str, row: dict[str, Any]) -> dict[str, bool]:
    found, bound_s = row["ours"]["median"], row["bound_s"]
    busy_bound = CASES[name].busy_bound()
    claims = {
        f"busy at least {BUSY} of the bound's": found["busy_fraction"] >= BUSY * busy_bound,
        f"`plan` within {FORETOLD:.0%}": abs(row["plan_s"] / found["makespan_s"] - 1) <= FORETOLD,
    }
    if name == MOST_OF_BOUND:
        limit_s = OF_BOUND * bound_s
        claims[f"from the pilot on at most {OF_BOUND} x the bound"] = found["from_pilot_s"] <= limit_s
        claims[f"the command at most {COMMAND_MORE_S:g} s more"] = (
            found["command_s"] <= limit_s + COMMAND_MORE_S
        )
    if "ray_rasda" in row:
        ray_s = row["ray_rasda"]["median"]["makespan_s"]
        claims[f"at most {LIMITS[name]} x Ray's RASDA"] = found["command_s"] <= LIMITS[name] * ray_s
    return claims


if __name__ == "__main__":
    main()
