"""The learning rate where the batch doubles: rules, warm-ups and moments compared on the shipped studies.

    python benchmarks/rescaling.py FOLDER [--studies cv_resnet ...] [--seeds 0 ...] [--trials 2 ...] [--all]
                                   [--out benchmarks/results/rescaling.json]

FOLDER is that of `quality.py`. Configurations are the winners of ASHA there, by study and seed, or other
trials of those searches by number. Each trains to the fourth rung of its study with the schedule of the
paper, 1, 2, 4 and 8 batches a step, whatever steps that leaves. The figure is the metric there over the one
with a batch that stays; smaller is better. Without ``--all`` the ways differ from the default in one respect
only.

What is there is not trained again. The winners of one seed take seven minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claims import conclude
from emulated_search import subjects_of, trained_trials
from quality_parts import STUDIES, Part
from trained_trials import Subject, TrainedTrials

from parsl_rasda.runtime.engine.learning_rate import SGD_FAMILY
from parsl_rasda.study import load_study
from parsl_rasda.types import ScheduleEntry
from parsl_rasda.user_modules import add_user_folders

if TYPE_CHECKING:
    from torch.optim import Optimizer

RUNGS = 4  # on the way to which 1, 2, 4 and 8 batches make a step
LARGE = 1e3  # times the figure of a batch that stays: as bad as diverged


@dataclass(frozen=True, slots=True)
class Way:
    """What is done where the batch doubles.

    Attributes:
        scaling: Of the learning rate; see ``training.lr_scaling``.
        warmup: From the old rate to the new one [epochs].
        moments: Whether the optimizer's moments follow the batch (`rescale_moments`).
    """

    scaling: str = "auto"
    warmup: float = 1.0
    moments: bool = False

    @property
    def name(self) -> str:
        return f"{self.scaling}, warm-up {self.warmup:g}" + (", moments rescaled" if self.moments else "")


RULES = ("linear", "sqrt", "none")
FEW = (
    *(Way(rule) for rule in RULES),
    Way("auto", 0.0),
    Way("auto", 2.0),
    Way("auto", 1.0, moments=True),
)
ALL = tuple(Way(r, w, moments=m) for m in (False, True) for r in RULES for w in (0.0, 1.0, 2.0))


def rescale_moments(optimizer: Optimizer, ratio: float) -> None:
    """Let the moments remember as many samples as before, though a step has ``ratio`` times as many.

    An average over steps with factor b is one with factor 1 - ratio (1 - b). Of Adam's second moment most is
    noise, whose variance falls as the batch grows: so it is divided, and epsilon with it.

    Source: Malladi et al. 2022 (arXiv:2205.10287), definition 3 (Adam); for momentum the same memory, as in
    Smith et al. 2018 (arXiv:1711.00489), section 3.2.
    """

    def shorter(factor: float) -> float:
        return max(0.0, 1 - ratio * (1 - factor))

    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = tuple(shorter(beta) for beta in group["betas"])
            group["eps"] /= math.sqrt(ratio)
        elif group.get("momentum"):
            group["momentum"] = shorter(group["momentum"])
    for state in optimizer.state.values():
        if "exp_avg_sq" in state:
            state["exp_avg_sq"] /= ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="That of quality.py, with the parts of ASHA.")
    parser.add_argument("--studies", nargs="*", choices=[*STUDIES], default=[*STUDIES])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--trials", nargs="*", type=int, help="Of each search, instead of its winner.")
    parser.add_argument("--all", action="store_true", help="Every combination.")
    parser.add_argument("--only", action="store_true", help="Add up what is there: train nothing.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = given.folder / "rescaling"
    place.mkdir(parents=True, exist_ok=True)
    ways = ALL if given.all else FEW
    for study in [] if given.only else given.studies:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            for seed in given.seeds:
                part = Part(study, seed, "asha")
                if (given.folder / "parts" / f"{part.name}.json").exists():
                    for trial in given.trials or [None]:
                        process.submit(compare, part, trial, given.folder, ways).result()
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("*.json"))]
    what = "metric at the end over that with a batch that stays; the paper's doubling, from 1 to 8 batches"
    conclude({"what": what, "ways": dict(added_up(rows)), "rows": rows}, {}, given.out)


def compare(part: Part, trial: int | None, folder: Path, ways: Sequence[Way]) -> None:
    """Train a trial of a search in all ways, and write down after each what it has come to."""
    subjects, trials, winner = prepared(part, folder)
    number = winner if trial is None else trial
    subject, name = subjects[number], f"{part.study}-{part.seed:02d}-{number:04d}"
    place = folder / "rescaling" / f"{name}.json"
    what = {"study": part.study, "seed": part.seed, "trial": number, "is_winner": number == winner}
    kept: dict[str, Any] = {**what, "config": subject.config, "ways": {}}
    if place.exists():
        kept = json.loads(place.read_text(encoding="utf-8"))
    end = trials.milestones[RUNGS - 1]
    kept["constant"] = trials.epoch(subject, ((0, 1),), end).metric
    optimizer = str(subject.config.get("optimizer", "adamw"))
    default = "linear" if optimizer.upper() in SGD_FAMILY else "sqrt"
    for way in ways:
        named = replace(way, scaling=default if way.scaling == "auto" else way.scaling)
        training = replace(subject.training, lr_scaling=named.scaling, warmup_rescale=named.warmup)
        changed = replace(subject, training=training, change="moments" if named.moments else "")
        kept["ways"][named.name] = trials.epoch(changed, doubling(trials.milestones), end).metric
        print(f"{name} {named.name}: {kept['ways'][named.name]:.4g}", file=sys.stderr)
        place.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def prepared(part: Part, folder: Path) -> tuple[list[Subject], TrainedTrials, int]:
    """Return the trials of a search, what trains them, and which one won."""
    home = folder / part.study
    add_user_folders([str(home)])
    spec = load_study(home / f"{part.name}.yaml", environment={})
    ((_, stage),) = spec.tune_stages.items()
    winner = json.loads((folder / "parts" / f"{part.name}.json").read_text(encoding="utf-8"))["best"]
    subjects = subjects_of(stage.tune, part.seed)
    trials = trained_trials(spec, home / "trained", stage.tune.scheduler.milestones)
    trials.changes = {"moments": rescale_moments}
    return subjects, trials, [s.config for s in subjects].index(winner)


def doubling(milestones: Sequence[int]) -> tuple[ScheduleEntry, ...]:
    """Return the schedule of the paper."""
    return tuple((begin, 2**rung) for rung, begin in enumerate((0, *milestones[:-1])) if rung < RUNGS)


def added_up(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield for each way the geometric mean of its ratios, by optimizer."""
    for kind in ("sgd", "adam"):
        mine = [row for row in rows if (row["config"].get("optimizer") == "sgd") == (kind == "sgd")]
        for way in sorted({way for row in mine for way in row["ways"]}):
            ratios = [ratio(row, way) for row in mine if way in row["ways"] and row["constant"]]
            mean = round(statistics.geometric_mean(ratios), 3)
            yield f"{kind}: {way}", {"ratio": mean, "configurations": len(ratios)}


def ratio(row: dict[str, Any], way: str) -> float:
    found = row["ways"][way]
    return max(1 / LARGE, min(LARGE, found / row["constant"])) if math.isfinite(found) else LARGE


if __name__ == "__main__":
    main()
