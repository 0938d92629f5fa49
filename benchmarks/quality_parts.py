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
from emulated_search import EmulatedSearch

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.trial_record import TrialRecord
from parsl_rasda.scheduling.batching import steps_per_epoch
from parsl_rasda.study import SchedulerSpec, TuneSpec, load_study
from parsl_rasda.user_modules import add_user_folders

SEEDS = 10
WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
COMMAND = Path(sys.executable).with_name("parsl-rasda")
STUDIES = {  # what `evaluate` says of the winner on data that no decision has seen; smaller is better
    "cfd_defiltering": "unseen_model_mse",
    "am_meltpool": "test_best_mse",
    "cv_resnet": "test_error",
    "cfd_autoencoder": "unseen_mse",
}


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared.

    Attributes:
        scheduler: Keys that differ from the shipped ones.
        is_random: Every trial trains to the end; as many as ASHA's epochs allow.
        same_epochs: As many trials as ASHA's epochs allow, rather than as many as are shipped.
        has_priors: The winner of ASHA's search with the seed before is believed to be good.
    """

    what: str
    scheduler: Mapping[str, object] = field(default_factory=dict)
    is_random: bool = False
    same_epochs: bool = False
    has_priors: bool = False


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
    "brackets": Arm("RASDA as shipped, brackets: 3, of ASHA's epochs", {"brackets": 3}, same_epochs=True),
    "auto": Arm("RASDA as shipped, brackets: auto, of ASHA's epochs", {"brackets": "auto"}, same_epochs=True),
    "curve": Arm(
        "RASDA as shipped, early: curve, variant stopping, of ASHA's epochs",
        {"early": "curve", "variant": "stopping"},
        same_epochs=True,
    ),
    "priors": Arm("RASDA as shipped, the winner of ASHA's other seed as the prior", has_priors=True),
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


def asha_of(part: Part) -> Part | None:
    """Return the part of ASHA that must be there before a part can be run, if one must."""
    arm = ARMS[part.arm]
    if arm.is_random or arm.same_epochs:
        return Part(part.study, part.seed, "asha")
    return Part(part.study, (part.seed - 1) % SEEDS, "asha") if arm.has_priors else None


def declared_arm(study: str) -> str:
    """Return the arm of RASDA as a study is shipped."""
    shipped = yaml.safe_load((WORKFLOWS / study / "study.yaml").read_text(encoding="utf-8"))
    return str(shipped["stages"][_search_of(shipped)]["tune"]["scheduler"].get("batch", "doubling"))


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
    asha: Mapping[str, Any] | None = None,
    trials: int | None = None,
) -> dict[str, Any]:
    """Return the search of a shipped study, and what comes after it, as a part has them.

    Args:
        study: As it is shipped.
        part: What is to differ.
        results: Of the stages before the search, by name.
        asha: What the part of ASHA has come to that this one needs.
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
    if arm.is_random and asha is not None:
        most = tune["scheduler"]["max_t"]
        tune["scheduler"]["grace_period"] = most  # so nobody is judged before
        tune["num_samples"] = max(1, round(asha["epochs"] / most))
    if arm.has_priors and asha is not None:
        tune["search_space"] = with_priors(tune["search_space"], asha["best"])
    stages[search] = {**stages[search], "tune": tune}
    return {**study, "seed": part.seed, "stages": stages}


def with_priors(space: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    """Return a search space in which the values of a configuration are believed to be good."""
    return {
        name: {**given, "prior": best[name]}
        if isinstance(given, dict) and "constant" not in given and name in best
        else given
        for name, given in space.items()
    }


def result_of(
    part: Part, folder: Path, place: Path, *, asha: Mapping[str, Any] | None, trials: int | None
) -> None:
    """Run a part, and write down what it has come to.

    A process may only call it for one study: their modules have the same names.
    """
    home = folder / part.study
    if not home.exists():
        shutil.copytree(WORKFLOWS / part.study, home)
    began = time.perf_counter()
    add_user_folders([str(home)])
    if asha is not None and ARMS[part.arm].same_epochs and trials is None:
        search, found = most_trials(part, home, asha)
    else:
        search = emulated(part, home, asha, trials)
        found = figures(part, search)
    found = {
        "study": part.study,
        "seed": part.seed,
        "arm": part.arm,
        "trials": trials,
        **found,
        "epochs_trained": search.trained.trained,
        "wall_s": round(time.perf_counter() - began, 1),
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, json.dumps(found, indent=1) + "\n")
    print(f"{part.name}: validation {found['validation']:.4g} in {found['wall_s']} s", file=sys.stderr)


def emulated(part: Part, home: Path, asha: Mapping[str, Any] | None, trials: int | None) -> EmulatedSearch:
    """Return the search of a part in the folder of its study."""
    shipped = yaml.safe_load((home / "study.yaml").read_text(encoding="utf-8"))
    written = part_study(shipped, part, prepared(home, shipped), asha=asha, trials=trials)
    file = home / f"{part.name}.yaml"
    file.write_text(json.dumps(written, indent=1), encoding="utf-8")  # which is YAML, too
    method = SchedulerSpec.model_validate(shipped["stages"][_search_of(shipped)]["tune"]["scheduler"])
    return EmulatedSearch(load_study(file, environment={}), home / "trained", method.milestones)


def most_trials(part: Part, home: Path, asha: Mapping[str, Any]) -> tuple[EmulatedSearch, dict[str, Any]]:
    """Return the largest search that trains no more epochs than ASHA, and its figures."""
    shipped = yaml.safe_load((home / "study.yaml").read_text(encoding="utf-8"))
    trials = shipped["stages"][_search_of(shipped)]["tune"]["num_samples"]
    tried: dict[int, tuple[EmulatedSearch, dict[str, Any]] | None] = {}  # None: too many
    while trials not in tried:
        search = emulated(part, home, asha, trials)
        found = {**figures(part, search), "num_samples": trials}
        fits = found["epochs"] <= asha["epochs"]
        tried[trials] = (search, found) if fits else None
        trials += 1 if fits else -1
    return next(found for number in sorted(tried, reverse=True) if (found := tried[number]) is not None)


def figures(part: Part, search: EmulatedSearch) -> dict[str, Any]:
    """Return the figures of a search, which is run here."""
    usage = search.run()
    document = summarise(part.study, search.machine, usage)
    return {
        "validation": document["best"]["metric"],
        "test": search.evaluated(document["best"])[STUDIES[part.study]],
        "epochs": usage.epochs,
        "steps": sum(steps_of(trial, search.tune) for trial in search.machine.trials.values()),
        "gpu_s": round(usage.busy_gpu_s, 1),
        "makespan_16_s": round(usage.makespan_s(), 2),
        "gpu_hours_16": round(usage.held_gpu_s() / 3600, 4),
        "batches": [rung["batches"] for rung in document["rungs"]],
        "noise_scale": [rung["noise_scale"] for rung in document["rungs"]],
        "states": {state: n for state, n in document["trials"].items() if n},
        "winner": {key: document["best"][key] for key in ("trial", "epoch")},
        "best": search.subjects[int(document["best"]["trial"])].config,
    }


def steps_of(trial: TrialRecord, tune: TuneSpec) -> int:
    """Return the updates of a trial's weights, without those of epochs that were lost."""
    size = tune.training.resolve(trial.config).batch_size
    samples = trial.samples or 0
    return sum(steps_per_epoch(samples, trial.batches_of(epoch) * size) for epoch in trial.history)


def prepared(home: Path, shipped: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of the stages before the search, which really run the first time."""
    file, kept = home / "data.yaml", home / "data.json"
    if not kept.exists():
        file.write_text(json.dumps(data_study(shipped), indent=1), encoding="utf-8")
        words = [str(COMMAND), "run", str(file), "--site", "local", "--dir", str(home / "run-data"), "--json"]
        done = subprocess.run(words, cwd=home, stdout=subprocess.PIPE, check=True)
        replace_file(kept, done.stdout)
    document = json.loads(kept.read_text(encoding="utf-8"))
    return {name: stage["result"] for name, stage in document["stages"].items()}


def _search_of(study: Mapping[str, Any]) -> str:
    (search,) = (name for name, stage in study["stages"].items() if "tune" in stage)
    return str(search)
