"""The parts of `quality.py`: from a shipped study, a seed and an arm to what the search came to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.orchestration.replay import replay_search
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.scheduling.batching import steps_per_epoch
from parsl_rasda.simulation.forecast import forecast
from parsl_rasda.simulation.rehearsal import VirtualSite
from parsl_rasda.study import TuneSpec, load_study
from parsl_rasda.types import SiteName

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
COMMAND = Path(sys.executable).with_name("parsl-rasda")
STUDIES = {  # what `evaluate` says of the winner on data that no decision has seen; smaller is better
    "cfd_defiltering": "unseen_model_mse",
    "am_meltpool": "test_best_mse",
    "cv_resnet": "test_error",
    "cfd_autoencoder": "unseen_mse",
}
EMULATED = VirtualSite(nodes=4, gpus_per_node=4)


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared.

    Attributes:
        scheduler: Keys that differ from the shipped ones.
        is_random: Every trial trains to the end; as many as ASHA's epochs allow.
    """

    what: str
    scheduler: Mapping[str, object] = field(default_factory=dict)
    is_random: bool = False


ARMS = {
    "asha": Arm("ASHA", {"kind": "asha", "growth": "none"}),
    "doubling": Arm("RASDA, batch doubling, at least 50 steps an epoch", {"batch": "doubling"}),
    "paper": Arm(
        "RASDA of the paper: the batch doubles whatever it leaves",
        {"batch": "doubling", "min_steps_per_epoch": 0},
    ),
    "constant": Arm("RASDA, batch constant", {"batch": "constant"}),
    "measured": Arm("RASDA, batch measured", {"batch": "measured"}),
    "promotion": Arm("RASDA, variant promotion", {"batch": "doubling", "variant": "promotion"}),
    "random": Arm("random search of as many epochs as ASHA's", {"kind": "asha", "growth": "none"}, True),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One search."""

    study: str
    seed: int
    arm: str

    @property
    def name(self) -> str:
        return f"{self.study}-{self.seed:02d}-{self.arm}"


def needs_asha(part: Part) -> bool:
    """Return whether a part can be run only when the one of ASHA with its seed is there."""
    return ARMS[part.arm].is_random


def data_study(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shipped study without its search and what comes after it."""
    search = _search_of(study)
    kept, before = {}, list(study["stages"][search].get("needs", {}).values())
    while before:
        name = before.pop()
        kept[name] = study["stages"][name]
        before += study["stages"][name].get("needs", {}).values()
    return {**study, "name": f"{study['name']}_data", "stages": kept}


def part_study(
    study: Mapping[str, Any],
    part: Part,
    results: Mapping[str, Any],
    *,
    asha_epochs: int | None = None,
    trials: int | None = None,
) -> dict[str, Any]:
    """Return the search of a shipped study, and what comes after it, as a part has them.

    Args:
        study: As it is shipped.
        part: What is to differ.
        results: Of the stages before the search, by name.
        asha_epochs: Epochs that ASHA has trained with the same seed, for random search.
        trials: Of the search, if not as many as are shipped.
    """
    search, arm = _search_of(study), ARMS[part.arm]
    stages = {}
    for name, stage in study["stages"].items():
        needs = stage.get("needs", {})
        if name != search and search not in needs.values():
            continue
        given = {key: results[needed] for key, needed in needs.items() if needed in results}
        later = {key: needed for key, needed in needs.items() if needed not in results}
        stages[name] = {**stage, "needs": later, "with": {**stage.get("with", {}), **given}}
    tune = dict(stages[search]["tune"])
    tune["scheduler"] = {**tune["scheduler"], **arm.scheduler}
    tune["num_samples"] = trials or tune["num_samples"]
    if arm.is_random:
        most = tune["scheduler"]["max_t"]
        tune["scheduler"]["grace_period"] = most  # so nobody is judged before
        tune["num_samples"] = max(1, round((asha_epochs or 0) / most))
    stages[search] = {**stages[search], "tune": tune}
    return {**study, "seed": part.seed, "stages": stages}


def result_of(part: Part, folder: Path, place: Path, *, asha_epochs: int | None, trials: int | None) -> None:
    """Run a part, or take it up where it was left, and write down what it has come to."""
    home = folder / part.study
    if not home.exists():
        shutil.copytree(WORKFLOWS / part.study, home)
    shipped = yaml.safe_load((home / "study.yaml").read_text(encoding="utf-8"))
    print(f"{part.name}: begins", file=sys.stderr)
    began = time.perf_counter()
    prepared = _ran(home, "data", data_study(shipped))
    if prepared is None:
        return
    results = {name: stage["result"] for name, stage in prepared["stages"].items()}
    written = part_study(shipped, part, results, asha_epochs=asha_epochs, trials=trials)
    document = _ran(home, part.name, written)
    if document is None:
        return
    found = {
        "study": part.study,
        "seed": part.seed,
        "arm": part.arm,
        "trials": trials,
        "wall_s": round(time.perf_counter() - began, 1),
        **measured(part, document, home),
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, json.dumps(found, indent=1) + "\n")
    shutil.rmtree(home / f"run-{part.name}")
    print(f"{part.name}: validation {found['validation']:.4g} in {found['wall_s']} s", file=sys.stderr)


def measured(part: Part, document: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """Return the figures of a run that has ended.

    The makespan is that of the same search on `EMULATED`, with the epoch times, starts and learning curves
    that the run has measured. Widths that the machine of the run did not have are scaled by the efficiency of
    those that it had, or that the study assumes.
    """
    spec = load_study(home / f"{part.name}.yaml", environment={})
    ((stage, search),) = spec.tune_stages.items()
    history = replay_search(RunDirectory(home / f"run-{part.name}"), spec.name, search.tune)
    forecasted = forecast(stage, search.tune, {SiteName("emulated"): EMULATED}, seed=0, measured=history)
    declared = next(p for p in forecasted.policies if p.is_declared)
    (evaluated,) = (s["result"] for name, s in document["stages"].items() if name != stage)
    return {
        "validation": document["best"]["metric"],
        "test": evaluated[STUDIES[part.study]],
        "epochs": document["epochs"],
        "steps": sum(steps_of(trial, search.tune) for trial in history.machine.trials.values()),
        "gpu_s": round(document["gpu_hours"] * 3600 * document["gpu_busy_fraction"], 1),
        "makespan_16_s": declared.makespan_s,
        "gpu_hours_16": declared.gpu_hours,
        "batches": [rung["batches"] for rung in document["rungs"]],
        "noise_scale": [rung["noise_scale"] for rung in document["rungs"]],
        "states": {state: n for state, n in document["trials"].items() if n},
        "best": document["best"]["config"],
    }


def steps_of(trial: TrialRecord, tune: TuneSpec) -> int:
    """Return the updates of a trial's weights, without those of epochs that were lost."""
    size = tune.training.resolve(trial.config).batch_size
    samples = trial.samples or 0
    return sum(steps_per_epoch(samples, trial.batches_of(epoch) * size) for epoch in trial.history)


def _ran(home: Path, name: str, study: Mapping[str, Any]) -> dict[str, Any] | None:
    """Run a study to its end, or take it up; returns its document, or None if it has failed."""
    file, run = home / f"{name}.yaml", home / f"run-{name}"
    file.write_text(json.dumps(study, indent=1), encoding="utf-8")  # which is YAML, too
    words = ["resume", str(run)] if (run / "study.yaml").exists() else ["run", str(file), "--site", "local"]
    words += [] if words[0] == "resume" else ["--dir", str(run)]
    done = subprocess.run(
        [str(COMMAND), *words, "--json"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        print(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _search_of(study: Mapping[str, Any]) -> str:
    (search,) = (name for name, stage in study["stages"].items() if "tune" in stage)
    return str(search)
