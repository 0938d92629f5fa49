"""The product on a real Slurm: four virtual nodes with four GPUs each, by the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trainer_functions
from audits import AUDIT, audit
from backend_tools import eventually
from rank_launch import OPENMPI, epochs_of, finished, missing_of, rank_command, written_order
from slurm_cluster import SlurmCluster
from trainer_cases import seen_by, trained_alone

from parsl_rasda.agent import orphan_reaper
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.orchestration.events import (
    RELEASED,
    EpochReported,
    JobEnded,
    JobStarted,
    PilotEnded,
    PilotStarted,
    RequestPilot,
)
from parsl_rasda.orchestration.journal import read
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.testing.backends import EventLog, RunningPilot
from parsl_rasda.types import JobId, NodeSlots, Outcome, PilotId, SiteName

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = Path(sys.executable).parent / "parsl-rasda"
DEADLINE_S = 240.0

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SITE = {
    "provider": {
        "type": "SlurmProvider",
        "partition": "main",
        "nodes_per_block": 4,
        "gpus_per_node": 4,
        "walltime": "00:10:00",
    },
    "mpi_launcher": "srun",
    "accelerator": "none",
    "gpus_per_node": 4,
    "address": "127.0.0.1",
    "heartbeat_threshold": 5,
}
STUDY: dict[str, Any] = {
    "name": "slurm",
    "seed": 5,
    "with": {"epoch_s": 0.2, "efficiency": 0.9, "seed": 5},
    "tune": {
        "metric": "val_loss",
        "num_samples": 8,
        "scheduler": {"max_t": 8, "max_workers": 16},
        "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
        "training": {"python": "workflows.emulated.train:train"},
        "estimates": {"epoch_s": 0.2, "restart_s": 0.05},
    },
}
_MINE = sorted(os.sched_getaffinity(0))
CORES = [_MINE[gpu % len(_MINE)] for gpu in range(4)]  # next to each GPU, as it were
END_TOGETHER = f"{sys.executable} {HERE}/audit_script.py --lr {{{{lr}}}} --until-there {{end}}"
END_TOGETHER += " --epoch {{epoch}} --until {{until}} --report {{report}}"


@pytest.fixture(scope="module")
def the_cluster(need: Callable[..., None]) -> Iterator[SlurmCluster]:
    need("slurm")
    with SlurmCluster(nodes=5) as cluster:  # one to spare
        yield cluster


@pytest.fixture
def cluster(the_cluster: SlurmCluster) -> SlurmCluster:
    the_cluster.revive()
    return the_cluster


class Place:
    """A folder with study and site files, and the command line on them."""

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        self.folder, self.cluster = folder, cluster

    def write(self, name: str, content: dict[str, Any]) -> Path:
        path = self.folder / name  # JSON is YAML
        path.write_text(json.dumps(content))
        return path

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(COMMAND), *map(str, words)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.cluster.environment, "PYTHONPATH": str(ROOT)},
        )

    def run(self, study: dict[str, Any], site: dict[str, Any], into: str = "run") -> dict[str, Any]:
        """Run a study to its good end and return its summary."""
        files = self.write("study.yaml", study), self.write("slurm.yaml", site)
        process = self.start("run", files[0], "--site", files[1], "--dir", into, "--json")
        return self.finish(process)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        return summary


@pytest.fixture
def place(tmp_path: Path, cluster: SlurmCluster) -> Place:
    return Place(tmp_path, cluster)


def study_of(**tune: Any) -> dict[str, Any]:
    merged = {**STUDY["tune"], **tune}
    merged["scheduler"] = {**STUDY["tune"]["scheduler"], **tune.get("scheduler", {})}
    return {**STUDY, "tune": merged}


# ------------------------------------------------------------------------------------------ placements


def test_64_trials_use_no_gpu_twice_and_none_outside_their_placements(place: Place) -> None:
    # Strict growth needs every width; two in three trials are stopped at each rung.
    scheduler = {"max_t": 81, "reduction_factor": 3, "max_workers": 16, "growth": "strict"}
    study = study_of(num_samples=64, training=AUDIT, scheduler=scheduler)
    summary = place.run(study, {**SITE, "accelerator": "cuda"})
    assert summary["trials"]["failed"] == 0
    run = place.folder / "run"
    assert audit(run, "CUDA_VISIBLE_DEVICES") == {1, 2, 4, 8, 16}


def test_trials_of_1_and_2_gpus_share_a_node_beside_trials_of_4_8_and_16(
    tmp_path: Path, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Placed by hand: no growth policy promises all of them at one time.
    for name, value in {**cluster.environment, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    provider = {**SITE["provider"], "nodes_per_block": 5}
    site = {**SITE, "name": "slurm", "accelerator": "cuda", "provider": provider}
    site["cores_of_gpu"] = [str(core) for core in CORES]
    context = BackendContext(tmp_path / "runner")
    runner, log = build_backend(ParslSiteSpec.model_validate(site), context), EventLog(DEADLINE_S)
    runner.open(log.post)
    try:
        runner.request_pilot(RequestPilot(PilotId("slurm-0"), SiteName("slurm")))
        pilot = RunningPilot(runner, log, log.next(PilotStarted), tmp_path / "trials")
        first, *whole = pilot.pilot.nodes
        narrow = {"1": first.gpus[:1], "2": first.gpus[1:3], "1-again": first.gpus[3:]}
        for beside in ({"4": whole[:1], "8": whole[1:3]}, {"16": whole}):
            end = tmp_path / f"end-{len(beside)}"
            of_each = {name: (NodeSlots(first.node, gpus),) for name, gpus in narrow.items()} | beside
            started = [
                pilot.start_at(
                    f"{name}-beside-{'-'.join(beside)}",
                    tuple(nodes),
                    command=tuple(END_TOGETHER.format(end=end).split()),
                    **{"config": {"lr": 0.1}, "python": None, "interactive": False},
                    **{"metric": "val_loss", "accelerator": "cuda"},
                )
                for name, nodes in of_each.items()
            ]
            count = sum(len(node.gpus) for nodes in of_each.values() for node in nodes)
            all_begun = partial(_have_begun, tmp_path, f"*-beside-{'-'.join(beside)}", count)
            eventually(all_begun, "all train at one time", deadline_s=DEADLINE_S)
            end.touch()
            assert {log.next(JobEnded, job).outcome for job in started} == {Outcome.REACHED}
    finally:
        runner.close()
    assert audit(tmp_path, "CUDA_VISIBLE_DEVICES") == {1, 2, 4, 8, 16}
    for group in ("*-beside-4-8", "*-beside-16"):
        ranks = [json.loads(p.read_text()) for p in tmp_path.glob(f"trials/{group}/attempt-1/rank-*.json")]
        assert max(r["began"] for r in ranks) < min(r["ended"] for r in ranks), "all at one time"
        for rank in ranks:
            gpu = rank["masks"]["CUDA_VISIBLE_DEVICES"].split(",")[rank["local_rank"]]
            assert rank["cores"] == [CORES[int(gpu)]], "it keeps to the cores next to its GPU"


def _have_begun(folder: Path, trials: str, count: int) -> bool:
    return len([*folder.glob(f"trials/{trials}/attempt-1/began-*")]) == count


def test_a_secret_reaches_a_pilot_and_is_in_no_job_script(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REL_TOKEN", "s3cr3t-token")
    told = place.folder / "told"
    init = f"printf '%s %s' '${{REL_TOKEN}}' $(umask) > {told}"
    place.run(study_of(num_samples=1), {**SITE, "provider": {**SITE["provider"], "worker_init": init}})
    assert told.read_text().startswith("s3cr3t-token ")
    kept = [path for path in (place.folder / "run").rglob("*") if path.is_file()]
    assert [path for path in kept if b"s3cr3t" in path.read_bytes() or path.stat().st_mode & 0o077] == []


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("launcher", "accelerator", "mask"),
    [
        ("hydra", "rocm", "ROCR_VISIBLE_DEVICES"),
        ("srun", "xpu", "ZE_AFFINITY_MASK"),
        ("openmpi", "cuda", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_each_launcher_puts_ranks_where_the_ledger_wants_them_inside_an_allocation(
    place: Place, need: Callable[..., None], launcher: str, accelerator: str, mask: str
) -> None:
    need("openmpi" if launcher == "openmpi" else "mpiexec", also_missing=missing_of(launcher))
    study = study_of(
        num_samples=8,
        training=AUDIT,
        scheduler={"variant": "synchronous", "max_t": 8, "max_workers": 8, "growth": "strict"},
    )
    site = {**SITE, "accelerator": accelerator, "mpi_launcher": launcher}
    if launcher == "openmpi":  # before MPICH's on the pilot's PATH
        site["provider"] = {**SITE["provider"], "worker_init": f'export PATH={OPENMPI}:"$PATH"'}
    summary = place.run(study, site)
    assert summary["trials"]["failed"] == 0
    assert audit(place.folder / "run", mask) >= {1, 2, 8}, "in a part of a node, and over two"


# ------------------------------------------------------------------------------------------- the method

SYNCHRONOUS = {"variant": "synchronous", "max_workers": 16}
LOCAL = {
    "provider": {"type": "LocalProvider"},
    "accelerator": "none",
    "mpi_launcher": "process",
    "nodes": 4,
    "gpus_per_node": 4,
}


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on the machine: who survived how long, with which metrics."""
    return {t["trial"]: (t["state"], t["epoch"], t["metric"]) for t in summary["trial_list"]}


def events_of(folder: Path, kind: type) -> list[Any]:
    return [r.event for r in read(folder / "journal.jsonl") if isinstance(r.event, kind)]


def repeated(folder: Path) -> Counter[str]:
    """Return how many epochs each trial has reported more than once."""
    times = Counter((e.job.trial, e.epoch) for e in events_of(folder, EpochReported))
    more = Counter({trial: 0 for trial, _ in times})
    for (trial, _), count in times.items():
        more[trial] += count - 1
    return more


@pytest.fixture(scope="module")
def as_on_local(tmp_path_factory: pytest.TempPathFactory, the_cluster: SlurmCluster) -> dict[str, Any]:
    place = Place(tmp_path_factory.mktemp("local"), the_cluster)
    return verdict(place.run(study_of(scheduler=SYNCHRONOUS), LOCAL))


def test_a_pilot_that_ends_in_mid_study_costs_no_retry_and_nothing_of_the_result(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    site = {
        **SITE,
        "provider": {**SITE["provider"], "nodes_per_block": 1, "walltime": "00:01:00"},
        "checkpoint_margin": 25,
    }
    study = {**study_of(scheduler=SYNCHRONOUS), "with": {**STUDY["with"], "epoch_s": 8.0}}
    summary = place.run(study, site)
    assert verdict(summary) == as_on_local
    assert len(events_of(place.folder / "run", PilotStarted)) >= 2, "one minute is not enough"
    assert [t["losses"] for t in summary["trial_list"]] == [0] * 8
    assert max(repeated(place.folder / "run").values()) <= 1, "the running epoch of each, if at all"
    assert not [f for f in summary["faults"]["list"] if f["what"].startswith("job")]


def test_a_controller_inside_an_allocation_ends_with_it_and_the_next_one_goes_on(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    study = {**study_of(scheduler=SYNCHRONOUS), "with": {**STUDY["with"], "epoch_s": 15.0}}
    files = place.write("study.yaml", study), place.write("local.yaml", {**LOCAL, "checkpoint_margin": 25})
    first = in_allocation(place, "00:01:00", "run", files[0], "--site", files[1], "--dir", "run")
    assert "code 130" in first, first
    assert "allocation" in first, first
    assert len(events_of(place.folder / "run", PilotStarted)) == 1, "it is not replaced there"
    assert "code 0" in in_allocation(place, "00:10:00", "resume", "run")
    summary = place.finish(place.start("status", "run", "--json"))
    assert verdict(summary) == as_on_local
    assert [t["losses"] for t in summary["trial_list"]] == [0] * 8


def in_allocation(place: Place, walltime: str, *words: str | Path) -> str:
    """Run a command inside an allocation; return what it said, and its exit code."""
    script = place.folder / "job.sh"
    command = " ".join(map(str, (COMMAND, *words)))
    script.write_text(f"#!/bin/bash\ncd {place.folder}\n{command}\necho code $?\n")
    options = ("--parsable", "--nodes=1", "--exclusive", f"--time={walltime}")
    output = f"--output={place.folder}/out-{words[0]}.txt"
    environment = {"PYTHONPATH": str(ROOT)}
    job = place.cluster.run("sbatch", *options, output, str(script), environment=environment).strip()
    eventually(lambda: job not in place.cluster.jobs("PENDING,RUNNING,COMPLETING"), deadline_s=DEADLINE_S)
    return (place.folder / f"out-{words[0]}.txt").read_text()


def test_two_pilots_share_a_study_and_one_that_idles_is_given_back(place: Place) -> None:
    provider = {**SITE["provider"], "nodes_per_block": 1}
    site = {**SITE, "provider": provider, "pilots": 2, "release_idle_after": 2}
    # 12 trials for an epoch, 4 for two more, the last one alone for six.
    ladder = {"variant": "synchronous", "reduction_factor": 3, "max_t": 9}
    study = study_of(num_samples=12, scheduler={**ladder, "growth": "none", "max_workers": 1})
    summary = place.run({**study, "with": {**STUDY["with"], "epoch_s": 1.5}}, site)
    run = place.folder / "run"
    first, second, *_ = events_of(run, PilotStarted)
    assert {n.node for n in first.nodes}.isdisjoint(n.node for n in second.nodes)
    used = {slot.partition(":")[0] for e in events_of(run, EpochReported) for slot in e.slots}
    assert used >= {n.node for pilot in (first, second) for n in pilot.nodes}, "both worked"
    given_back = [e for e in events_of(run, PilotEnded) if e.cause == RELEASED]
    assert given_back, "the last trials fit on one"
    assert given_back[0].at < max(e.at for e in events_of(run, EpochReported)), "while others trained"
    assert [t["losses"] for t in summary["trial_list"]] == [0] * 12


# ------------------------------------------------------------------------------------------ real training

CFD = ROOT / "workflows" / "cfd_defiltering" / "study.yaml"
REDUCED = {  # to what two cores do in a minute or two
    "stages.tune.tune.num_samples": 3,
    "stages.tune.tune.search_space.width": 8,
    "stages.tune.tune.scheduler.max_t": 8,
    "stages.tune.tune.scheduler.batch": "doubling",
    "stages.tune.tune.scheduler.max_workers": 16,
    # From 1 straight to 16: with 16 ranks on two cores nothing in between would ever pay.
    "stages.tune.tune.scheduler.scaling_factor": 16,
    "stages.tune.tune.training.batch_size": 1,
    "stages.tune.tune.scheduler.min_steps_per_epoch": 0,  # one sample cannot be shared by more replicas
}
# Elastic growth must pay by epochs as they are measured; where trials wait at rungs, shorter ones do.
LARGER = {"stages.simulate.for_each.seed": [0, 1, 100], "stages.tune.tune.scheduler.variant": "stopping"}
SMALLER = {
    "stages.simulate.for_each.seed": [0, 100],
    "stages.simulate.with.grid": 32,
    "stages.simulate.with.snapshots": 32,
    "stages.tune.tune.scheduler.max_t": 4,
    "stages.tune.tune.scheduler.variant": "synchronous",
}


def cfd(place: Place, site: str | Path, into: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Run the study that we ship, reduced, and return its summary."""
    changed = {**REDUCED, **changes}
    words = [word for key, value in changed.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return place.finish(place.start("run", CFD, "--site", site, "--dir", into, *words, "--json"))


@pytest.fixture
def cfd_site(place: Place) -> Path:
    # Whoever reports last at a rung still holds a slot when the winner starts: the fifth node has it.
    provider = {**SITE["provider"], "nodes_per_block": 5}
    return place.write("slurm.yaml", {**SITE, "accelerator": "cpu", "provider": provider})


def test_the_cfd_study_grows_to_16_ranks_by_the_elastic_policy(place: Place, cfd_site: Path) -> None:
    summary = cfd(place, cfd_site, "run", LARGER)
    assert summary["best"]["metric"] < 1.0
    assert assert_whole_nodes(place.folder / "run") >= {1, 16}


def test_the_cfd_study_ends_on_slurm_as_on_local(place: Place, cfd_site: Path) -> None:
    # Strict growth there: whether a width pays depends on how busy the machine is, the result does not.
    wide = {**SMALLER, "stages.tune.tune.scheduler.growth": "strict"}
    on_slurm = cfd(place, cfd_site, "run", wide)
    assert verdict(cfd(place, "local", "on_local", SMALLER)) == verdict(on_slurm)
    assert assert_whole_nodes(place.folder / "run") >= {1, 16}


def assert_whole_nodes(directory: Path) -> set[int]:
    """Check the order of 16 ranks by what they say themselves; return the widths seen."""
    started = {e.job: tuple(e.slots) for e in events_of(directory, EpochReported)}
    for slots in {slots for slots in started.values() if len(slots) == 16}:
        nodes = list(dict.fromkeys(slot.partition(":")[0] for slot in slots))
        assert slots == tuple(f"{node}:{gpu}" for node in nodes for gpu in range(4)), "whole nodes, in order"
    return {len(slots) for slots in started.values()}


# --------------------------------------------------------------------------------------------- doctor


@pytest.mark.filterwarnings("ignore")  # of its libraries, about each other
@pytest.mark.parametrize(
    ("library", "metric"),
    [("lightning", "val_loss"), ("transformers", "eval_loss"), ("accelerate", "val_loss")],
)
def test_a_loop_of_others_trains_on_two_nodes_what_it_trains_on_one(
    tmp_path: Path, cluster: SlurmCluster, library: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    function = f"train_{library.replace('transformers', 'huggingface')}"
    shutil.copy(HERE / "trainer_functions.py", tmp_path)
    order = written_order(
        tmp_path / "attempt-1",
        python=f"trainer_functions:{function}",
        metric=metric,
        search_path=(str(tmp_path),),
        config={"lr": 0.01},
        schedule=((0, 2),),
        world_size=2,
        slots=("n0:0", "n1:0"),
        until=2,
    )
    launch = ["srun", "--nodes=2", "--ntasks=2", "--nodelist=n0,n1", *rank_command(order)]
    status, errors = finished(launch, cluster.environment)
    assert status == 0, errors
    assert [report.epoch for report in epochs_of(order)] == [1, 2]
    assert epochs_of(order)[-1].slots == ("n0:0", "n1:0")
    seen = seen_by(tmp_path / "attempt-1")
    both = Counter((e, n) for lines in seen.values() for e, _, numbers in lines for n in numbers)
    every = range(trainer_functions.SAMPLES)
    assert sorted(seen) == ["seen-0", "seen-1"]
    assert both == Counter((epoch, number) for epoch in range(2) for number in every)
    same = {"config": order.config, "seed": order.seed, "training": order.training}
    same |= {"schedule": order.schedule, "max_epochs": order.max_epochs}
    alone, _ = trained_alone(
        tmp_path / "alone", getattr(trainer_functions, function), metric=metric, until=2, **same
    )
    for there, here in zip(epochs_of(order), alone.history, strict=True):
        assert there.metrics[metric] == pytest.approx(here.metrics[metric], rel=1e-4)


def test_doctor_finds_the_site_fit_and_measures_one_gpu_one_node_and_two(place: Place) -> None:
    provider = {**SITE["provider"], "worker_init": "echo no such module >&2"}
    site = place.write("slurm.yaml", {**SITE, "provider": provider, "accelerator": "cpu"})
    process = place.start("doctor", "--site", site, "--json")
    document = place.finish(process)
    found = {f["what"]: f for f in document["findings"]}
    assert document["fit"], found
    assert found["pilot"]["found"].startswith("2 nodes"), "a small one"
    assert "1 rank in" in found["all-reduce, 1 core"]["found"]
    assert "4 ranks" in found["all-reduce, 1 node"]["found"]
    assert "8 ranks" in found["all-reduce, 2 nodes"]["found"]
    assert "GB/s, 8 MB of gradients exchanged in" in found["all-reduce, 2 nodes"]["found"]
    assert "between 2 nodes" in found["network"]["found"]
    assert found["worker_init"]["found"] == "no such module"
    assert {found["space"]["verdict"], found["TMPDIR"]["verdict"]} <= {"ok", "check"}
    assert "torch" in found["packages"]["found"]
    assert found["fork server"]["verdict"] == "ok"
    assert place.cluster.jobs("PENDING,RUNNING") == []
    assert not list(place.folder.glob("rasda-doctor-*")), "it cleans up behind itself"


def test_doctor_says_what_to_change_where_ranks_cannot_start(place: Place) -> None:
    broken = {**SITE, "accelerator": "cpu", "launcher_options": ["--no-such-option"]}
    process = place.start("doctor", "--site", place.write("slurm.yaml", broken), "--json")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 4, err
    found = {f["what"]: f for f in json.loads(out)["findings"]}
    assert found["all-reduce, 1 core"]["verdict"] == "change"
    assert "no-such-option" in found["all-reduce, 1 core"]["found"]
    assert "look at launcher_options" in found["all-reduce, 1 core"]["advice"]
    assert "logs are in" in err


# --------------------------------------------------------------------------------------------- faults


def when_jobs_have_started(
    place: Place, process: subprocess.Popen[str], attempt: int, count: int = 1
) -> JobId:
    """Wait until so many n-th attempts have begun to train; return the last one."""
    journal = place.folder / "run" / "journal.jsonl"

    def started() -> list[JobId]:
        found = events_of(place.folder / "run", JobStarted) if journal.exists() else []
        return [event.job for event in found if event.job.attempt >= attempt]

    eventually(lambda: len(started()) >= count or process.poll() is not None, deadline_s=DEADLINE_S)
    assert process.poll() is None, "the study ended before it was hit"
    return started()[-1]


def start_long(place: Place, *, epoch_s: float, options: str = "") -> subprocess.Popen[str]:
    study = {**study_of(scheduler=SYNCHRONOUS), "with": {**STUDY["with"], "epoch_s": epoch_s}}
    site = {**SITE, "provider": {**SITE["provider"], "scheduler_options": options}}
    files = place.write("study.yaml", study), place.write("slurm.yaml", site)
    return place.start("run", files[0], "--site", files[1], "--dir", "run", "--json")


def mark_of(place: Place) -> str:
    found: str = json.loads((place.folder / "run/runners/slurm/controller.json").read_text())["mark"]
    return found


def pids_of(place: Place, word: str) -> list[int]:
    """Return processes of the run with an argument that ends so."""
    found = []
    for process in orphan_reaper.marked(orphan_reaper.RUN_VARIABLE, mark_of(place)):
        try:
            words = command_of(process.pid)
        except OSError:
            continue
        if any(w.endswith(word) for w in words):
            found.append(process.pid)
    return found


def status_of(place: Place) -> str:
    process = place.start("status", "run")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return out


def assert_no_orphans(place: Place, mark: str) -> None:
    eventually(lambda: not orphan_reaper.marked(orphan_reaper.RUN_VARIABLE, mark))
    eventually(lambda: not place.cluster.jobs("PENDING,RUNNING"))


def test_a_rank_a_worker_and_a_pilot_die_and_the_study_ends_as_if_undisturbed(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    process = start_long(place, epoch_s=6.0)
    job = when_jobs_have_started(place, process, attempt=1, count=8)
    mark = mark_of(place)
    os.kill(rank_of(place, job), signal.SIGKILL)
    job = when_jobs_have_started(place, process, attempt=2)
    os.kill(worker_of(place, job), signal.SIGKILL)
    job = when_jobs_have_started(place, process, attempt=3)
    place.cluster.run("scancel", *place.cluster.jobs("RUNNING"))
    summary = place.finish(process)
    assert verdict(summary) == as_on_local
    (hit,) = [t for t in summary["trial_list"] if t["trial"] == job.trial]
    assert hit["losses"] == 1, "neither its worker nor its pilot costs it a retry"
    text = status_of(place)
    assert "a rank died by SIGKILL" in text
    assert "Task failure due to loss of worker" in text
    assert "CANCELLED: it was cancelled" in text
    assert_no_orphans(place, mark)


def rank_of(place: Place, job: JobId) -> int:
    launch = pids_of(place, order_of(job))
    (rank,) = [p for p in launch if command_of(p)[0] != "srun" and not is_warden(p)]
    return rank


def worker_of(place: Place, job: JobId) -> int:
    (warden,) = filter(is_warden, pids_of(place, order_of(job)))
    return psutil.Process(warden).ppid()


def is_warden(pid: int) -> bool:
    """Whether this is what stands between a worker and its launcher."""
    return any(word.endswith("warden.py") for word in command_of(pid))


def order_of(job: JobId) -> str:
    return f"{job.trial}/attempt-{job.attempt}/order.json"


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")


def test_the_ranks_of_a_killed_srun_end_on_every_node(place: Place) -> None:
    """They bear no mark here, as on nodes where ours cannot look: only cancelling the step ends them."""
    (place.folder / "kill.py").write_text(KILLED_SRUN)
    script = place.folder / "job.sh"
    script.write_text(f"#!/bin/bash\ncd {place.folder}\n{sys.executable} kill.py\n")
    words = ("--parsable", "--nodes=2", "--exclusive", f"--output={place.folder}/out.txt", str(script))
    job = place.cluster.run("sbatch", *words, environment={"PYTHONPATH": str(ROOT)}).strip()
    eventually(lambda: job not in place.cluster.jobs("PENDING,RUNNING,COMPLETING"))
    said = (place.folder / "out.txt").read_text()
    assert "ranks began 4" in said, said
    assert "ranks left 0" in said, said


KILLED_SRUN = """
import time
from dataclasses import asdict
from pathlib import Path
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.srun import SrunLauncher
from parsl_rasda.agent.launch import Launch
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName

def ranks():
    paths = Path().glob("pid-*")
    return [p for p in paths if Path("/proc", p.name.removeprefix("pid-"), "stat").exists()]

import subprocess, os
listing = subprocess.run(("scontrol", "show", "hostnames"), capture_output=True, text=True).stdout
nodes = tuple(NodeSlots(NodeName(n), (0, 1)) for n in listing.split())
program = ("env", "-u", "PARSL_RASDA_JOB", "bash", "-c", "touch pid-$$; exec sleep 300")
settings = LaunchSettings(directory=str(Path("t0/attempt-1").absolute()))
command = SrunLauncher().command(Placement(SiteName("s"), PilotId("p"), nodes), program, settings)
launch = Launch(asdict(command), "mark", Path("log.txt"))
give_up = time.monotonic() + 60
while len(ranks()) < 4 and time.monotonic() < give_up:
    time.sleep(0.05)
print("ranks began", len(ranks()))
launch.kill()
while ranks() and time.monotonic() < give_up:
    time.sleep(0.05)
print("ranks left", len(ranks()))
"""


def test_a_node_fails_and_the_study_ends_as_if_undisturbed(place: Place, as_on_local: dict[str, Any]) -> None:
    process = start_long(place, epoch_s=12.0)
    eventually((place.folder / "run/journal.jsonl").exists, deadline_s=DEADLINE_S)
    eventually(lambda: events_of(place.folder / "run", PilotStarted), deadline_s=DEADLINE_S)
    mark = mark_of(place)
    place.cluster.kill_daemon("n3")
    eventually(
        lambda: events_of(place.folder / "run", PilotEnded) or process.poll() is not None,
        deadline_s=DEADLINE_S,
    )
    place.cluster.revive_nodes()
    summary = place.finish(process)
    assert verdict(summary) == as_on_local
    assert "NODE_FAIL" in status_of(place)
    assert [t["losses"] for t in summary["trial_list"]] == [0] * 8
    assert_no_orphans(place, mark)


def test_a_pilot_that_slurm_puts_back_into_the_queue_is_given_back_at_once(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    process = start_long(place, epoch_s=6.0, options="#SBATCH --requeue")  # ours says no
    when_jobs_have_started(place, process, attempt=1, count=8)
    mark = mark_of(place)
    (job,) = place.cluster.jobs("RUNNING")
    place.cluster.run("scontrol", "requeue", job)
    told_at = time.monotonic()
    eventually(
        lambda: events_of(place.folder / "run", PilotEnded) or process.poll() is not None,
        deadline_s=DEADLINE_S,
    )
    took_s = time.monotonic() - told_at
    summary = place.finish(process)
    assert verdict(summary) == as_on_local
    assert job in place.cluster.jobs("CANCELLED"), "it never runs beside the next one"
    assert took_s < 60, "the silence, one look; eight looks took two minutes"
    assert "was put back into the queue" in status_of(place)
    assert [t["losses"] for t in summary["trial_list"]] == [0] * 8
    assert_no_orphans(place, mark)


def test_a_node_that_is_drained_serves_its_pilot_to_the_end_and_not_the_next_one(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    process = start_long(place, epoch_s=6.0)
    when_jobs_have_started(place, process, attempt=1, count=8)
    place.cluster.drain("n0")
    when_jobs_have_started(place, process, attempt=1, count=8)
    assert not events_of(place.folder / "run", PilotEnded), "what runs there runs on"
    place.cluster.run("scancel", *place.cluster.jobs("RUNNING"))
    summary = place.finish(process)
    assert verdict(summary) == as_on_local
    first, *later = events_of(place.folder / "run", PilotStarted)
    assert "n0" in [n.node for n in first.nodes]
    assert later
    assert all("n0" not in [n.node for n in pilot.nodes] for pilot in later)


def test_the_controller_is_killed_and_nothing_of_its_study_is_left_to_resume_beside(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    process = start_long(place, epoch_s=2.5)
    when_jobs_have_started(place, process, attempt=1, count=8)
    mark = mark_of(place)
    process.kill()
    process.communicate()
    assert_no_orphans(place, mark)
    summary = place.finish(place.start("resume", "run", "--json"))
    assert verdict(summary) == as_on_local
    assert [t["losses"] for t in summary["trial_list"]] == [0] * 8
    assert_no_orphans(place, mark)


def test_the_manager_of_a_pilot_is_killed_and_the_study_ends_as_if_undisturbed(
    place: Place, as_on_local: dict[str, Any]
) -> None:
    process = start_long(place, epoch_s=2.5)
    when_jobs_have_started(place, process, attempt=1, count=8)
    mark = mark_of(place)
    pool = [p for p in pids_of(place, "parsl-rasda-workers") if "python" in command_of(p)[0]]
    (manager,) = [p for p in pool if psutil.Process(p).ppid() not in pool]  # the others are its workers
    os.kill(manager, signal.SIGKILL)
    summary = place.finish(process)
    assert verdict(summary) == as_on_local
    assert_no_orphans(place, mark)
