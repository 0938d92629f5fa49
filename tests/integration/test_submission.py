"""Studies whose controllers are batch jobs, on a real Slurm: by `submit`, and by a script that loops.

And studies whose jobs Slurm takes, puts back into the queue, or signals.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_tools import eventually, within
from slurm_cluster import SlurmCluster

from parsl_rasda.orchestration.events import EpochReported, PilotEnded, PilotStarted
from parsl_rasda.orchestration.journal import read

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("parsl-rasda")
SCRIPTS = ROOT / "site_configs" / "allocation"
DEADLINE_S = 560.0  # a test takes one or two minutes alone

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STUDY = """
name: jobs
seed: 5
with: {{epoch_s: {epoch_s}, efficiency: 0.9, seed: 5}}
tune:
  metric: val_loss
  num_samples: 8
  scheduler: {{variant: synchronous, max_t: 8, max_workers: 8}}
  search_space: {{lr: {{float: [1.0e-4, 1.0e-1], log: true}}}}
  training: {{python: workflows.emulated.train:train}}
  estimates: {{epoch_s: 0.2, restart_s: 0.05}}
"""
SHARED = "accelerator: none\nmpi_launcher: process\ngpus_per_node: 4\n"
LOCAL = f"provider: {{type: LocalProvider}}\nnodes: 2\n{SHARED}"
SLURM = f"""
provider:
  type: SlurmProvider
  partition: main
  nodes_per_block: 2
  gpus_per_node: 4
  walltime: "00:20:00"
controller: {{walltime: "00:15:00"}}
address: 127.0.0.1
checkpoint_margin: 20
{SHARED}
"""
BY_STEPS = SLURM.replace("mpi_launcher: process", "mpi_launcher: srun")
PREEMPTIBLE = f"{BY_STEPS}heartbeat_threshold: 5\n".replace(
    "nodes_per_block: 2", 'nodes_per_block: 1\n  scheduler_options: "#SBATCH --signal=TERM@60"'
)
URGENT = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""
# Of two tasks of an array, each has half of the GPUs of one node.
HALF_A_NODE = {
    "--nodes=2": "--nodes=1 --nodelist=n4 --cpus-per-task=8 --mem=4000",
    "--gpus-per-node=4": "--gpus-per-node=2",
    "#SBATCH --exclusive\n": "",
    "04:00:00": "00:15:00",
}
HALVES = [{"n4:0", "n4:1"}, {"n4:2", "n4:3"}]
SEES_GPUS = """
import os
from pathlib import Path
from workflows.emulated.train import train as emulated

def train(trial):
    seen = Path(__file__).with_name(f"gpus-{os.environ['SLURM_ARRAY_TASK_ID']}")
    with seen.open("a") as file:
        file.write(f"{os.environ['SLURMD_NODENAME']}:{os.environ['CUDA_VISIBLE_DEVICES']}\\n")
    emulated(trial)
"""
ALLOCATION = f"provider: {{type: LocalProvider}}\nnodes: auto\ncheckpoint_margin: 20\n{SHARED}"


class Place:
    """A folder with a study, on a cluster."""

    def __init__(self, folder: Path, cluster: SlurmCluster, epoch_s: float, run: str = "run") -> None:
        self.folder, self.cluster, self.run = folder, cluster, folder / run
        folder.mkdir(exist_ok=True)
        (folder / "study.yaml").write_text(STUDY.format(epoch_s=epoch_s))

    @property
    def environment(self) -> dict[str, str]:
        path = f"{COMMAND.parent}:{os.environ['PATH']}"
        return {**os.environ, **self.cluster.environment, "PYTHONPATH": str(ROOT), "PATH": path}

    def said(self, *words: str, code: int = 0) -> str:
        """Return what a command prints, once its exit code is right."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.said("parsl-rasda", "status", self.run.name, "--json"))
        return found

    @property
    def controllers(self) -> int:
        return len(list((self.run / "controllers").glob("*.json")))

    def count(self, word: str) -> int:
        """Return how often the journal has a word."""
        journal = self.run / "journal.jsonl"
        return journal.read_bytes().count(word.encode()) if journal.exists() else 0

    @property
    def epochs(self) -> int:
        return self.count('"EpochReported"')

    @property
    def jobs(self) -> list[str]:
        """The jobs that were submitted in this folder and have not ended."""
        asked = ("squeue", "--noheader", "--format=%A %Z", "--states=PENDING,RUNNING")
        found = (line.split() for line in self.cluster.run(*asked).splitlines())
        return [job for job, folder in found if folder == str(self.folder)]

    def interrupt(self, number: int) -> None:
        """Tell the controller of a job to leave, as at the end of its time, once a trial got further."""
        done = self.epochs
        eventually(lambda: self.controllers == number, f"job {number} starts", DEADLINE_S)
        eventually(lambda: self.epochs > done, "a trial gets further", DEADLINE_S)
        claim = json.loads((self.run / "controllers" / f"{number:06}.json").read_text())
        os.kill(claim["pid"], signal.SIGTERM)


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what must not depend on the machine: who survived how long, with which metrics."""
    return {t["trial"]: (t["state"], t["epoch"], t["metric"]) for t in summary["trial_list"]}


@pytest.fixture(scope="module")
def cluster(need: Callable[..., None]) -> Iterator[SlurmCluster]:
    need("slurm")
    with SlurmCluster(nodes=5, more=URGENT) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: SlurmCluster) -> dict[str, Any]:
    place = Place(tmp_path_factory.mktemp("local"), cluster, epoch_s=0.1)
    (place.folder / "local.yaml").write_text(LOCAL)
    place.said("parsl-rasda", "run", "study.yaml", "--site", "local.yaml", "--dir", "run")
    return verdict(place.status())


def test_two_studies_go_on_over_three_jobs_each_and_end_as_if_undisturbed(
    tmp_path: Path, cluster: SlurmCluster, undisturbed: dict[str, Any]
) -> None:
    """One by `submit`, whose shell is gone at once; one by the script that loops, in its own allocations."""
    submitted = Place(tmp_path / "submitted", cluster, epoch_s=2.0)
    (submitted.folder / "slurm.yaml").write_text(SLURM)
    words = ("submit", "study.yaml", "--site", "slurm.yaml", "--dir", "run")
    assert "runs the study in run" in submitted.said("parsl-rasda", *words)
    looping = Place(tmp_path / "looping", cluster, epoch_s=2.0)
    (looping.folder / "site.yaml").write_text(ALLOCATION)
    text = (SCRIPTS / "slurm.sh").read_text()
    (looping.folder / "slurm.sh").write_text(text.replace("04:00:00", "00:15:00"))
    looping.said("sbatch", "slurm.sh", "study.yaml", "run")
    # `submit` prepares the directory as a controller, too.
    for number in (1, 2):
        submitted.interrupt(number + 1)
        looping.interrupt(number)
    eventually(lambda: not cluster.jobs("PENDING,RUNNING,COMPLETING"), "both end", DEADLINE_S)
    for place in (submitted, looping):
        summary = place.status()
        assert summary["state"] == "done"
        assert verdict(summary) == undisturbed
        assert [t["losses"] for t in summary["trial_list"]] == [0] * 8
    assert (submitted.controllers, looping.controllers) == (4, 3)
    assert len(list(submitted.run.glob("submitted/rasda.*.stderr"))) == 3
    assert len(list(looping.folder.glob("study-*.log"))) == 3


def test_studies_whose_jobs_slurm_signals_requeues_or_preempts_end_as_if_undisturbed(
    tmp_path: Path, cluster: SlurmCluster, undisturbed: dict[str, Any]
) -> None:
    """A study in each task of an array, one by `submit --inside`, and one on pilots of a node."""
    tasks = [Place(tmp_path / "array", cluster, epoch_s=1.0, run=f"run-{task}") for task in (0, 1)]
    array = start_array(tasks[0])
    inside = Place(tmp_path / "inside", cluster, epoch_s=2.0)
    (inside.folder / "slurm.yaml").write_text(BY_STEPS)
    inside.said("parsl-rasda", "submit", "study.yaml", "--site", "slurm.yaml", "--dir", "run", "--inside")
    outside = Place(tmp_path / "outside", cluster, epoch_s=3.0)
    (outside.folder / "slurm.yaml").write_text(PREEMPTIBLE)
    words = ("parsl-rasda", "run", "study.yaml", "--site", "slurm.yaml", "--dir", "run")
    with (outside.folder / "out").open("w") as out:
        controller = subprocess.Popen(
            words, cwd=outside.folder, env=outside.environment, stdout=out, stderr=out
        )
    inside.interrupt(2)  # the first one is `submit`
    eventually(lambda: tasks[1].epochs, "a task of the array trains", DEADLINE_S)
    cluster.requeue(f"{array}_1")
    take_pilots(outside)
    if tasks[1].controllers < 2:  # Slurm forgets the request where the script ends by itself at that moment
        cluster.requeue(f"{array}_1")
    assert controller.wait(timeout=DEADLINE_S) == 0, (outside.folder / "out").read_text()
    eventually(lambda: not cluster.jobs("PENDING,RUNNING,COMPLETING"), "all end", DEADLINE_S)
    for place in (*tasks, inside, outside):
        summary = place.status()
        assert verdict(summary) == undisturbed, place.run
        assert [t["losses"] for t in summary["trial_list"]] == [0] * 8
        assert max(repeated(place).values()) <= 1, "the running epoch of each, if at all"
    assert [place.controllers for place in (*tasks, inside, outside)] == [1, 2, 3, 1]
    seen = [set((tasks[0].folder / f"gpus-{task}").read_text().split()) for task in (0, 1)]
    assert seen in (HALVES, HALVES[::-1])
    started = [event for event in events_of(inside) if isinstance(event, PilotStarted)]
    assert [(len(pilot.nodes), pilot.is_own_allocation) for pilot in started] == [(2, True)] * 2
    assert_one_pilot_at_a_time(outside)


def start_array(place: Place) -> str:
    """Start a study in each of two tasks of an array, by the script and the site that we ship."""
    text = (SCRIPTS / "slurm.sh").read_text()
    for before, after in HALF_A_NODE.items():
        text = text.replace(before, after)
    (place.folder / "slurm.sh").write_text(text)
    site = (SCRIPTS / "site.yaml").read_text().replace("checkpoint_margin: 120", "checkpoint_margin: 20")
    (place.folder / "site.yaml").write_text(f"{site}warm_start: false\n")
    (place.folder / "seeing.py").write_text(SEES_GPUS)
    study = STUDY.format(epoch_s=1.0).replace("max_workers: 8", "max_workers: 1")
    (place.folder / "study.yaml").write_text(study.replace("workflows.emulated.train:", "seeing:"))
    return place.said("sbatch", "--parsable", "--array=0-1", "slurm.sh", "study.yaml", "run").strip()


def take_pilots(place: Place) -> None:
    """Let Slurm signal a pilot's steps, then its shell, then give the node of the next pilot to others."""
    eventually(lambda: place.epochs, "a trial trains", DEADLINE_S)
    (pilot,) = place.jobs
    eventually(lambda: signalled(place, pilot), "the ranks have left", DEADLINE_S)
    goes_on(place)
    assert place.jobs == [pilot], "the trials go on where they were"
    place.cluster.run("scancel", "--signal=TERM", "--batch", pilot)
    eventually(lambda: place.count('"PilotEnded"') == 1, "the pilot ends", DEADLINE_S)
    goes_on(place)
    (pilot,) = place.jobs
    node = place.cluster.run("squeue", "--noheader", "--format=%N", f"--job={pilot}").strip()
    urgent = ("--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null")
    place.cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    eventually(lambda: place.count('"PilotEnded"') == 2, "the pilot is preempted", DEADLINE_S)


def signalled(place: Place, pilot: str) -> bool:
    """Signal the steps of a pilot; return whether one was hit, for between two trials there may be none."""
    place.cluster.run("scancel", "--signal=TERM", pilot)
    return bool(within(1.8, lambda: place.count("SIGTERM")))


def goes_on(place: Place) -> None:
    done = place.epochs
    eventually(lambda: place.epochs > done, "a trial gets further", DEADLINE_S)


def events_of(place: Place) -> list[Any]:
    return [record.event for record in read(place.run / "journal.jsonl")]


def repeated(place: Place) -> Counter[str]:
    """Return how many epochs each trial has reported more than once."""
    times = Counter((e.job.trial, e.epoch) for e in events_of(place) if isinstance(e, EpochReported))
    return Counter(trial for (trial, _), count in times.items() for _ in range(count - 1)) or Counter(t=0)


def assert_one_pilot_at_a_time(place: Place) -> None:
    """Check that each pilot but the first replaces one that had ended."""
    found = [type(e) for e in events_of(place) if isinstance(e, PilotStarted | PilotEnded)]
    assert len(found[::2]) > 2, "two were taken"
    assert {*found[::2]} == {PilotStarted}
    assert {*found[1::2]} == {PilotEnded}


def test_a_queue_is_heard_before_a_pilot_is_asked_for_while_it_waits_and_when_it_refuses(
    tmp_path: Path, cluster: SlurmCluster
) -> None:
    """And `cancel` ends a run from anywhere: a controller on this machine, and a job in the queue."""
    place = Place(tmp_path / "here", cluster, epoch_s=1.0)
    site = place.folder / "slurm.yaml"
    validate = ("parsl-rasda", "validate", "study.yaml", "--site", "slurm.yaml", "--online")
    site.write_text(SLURM)
    assert "would take a pilot: Job" in place.said(*validate)
    site.write_text(SLURM.replace("partition: main", "partition: none"))
    assert "invalid partition specified: none" in place.said(*validate, code=2)
    run = ("parsl-rasda", "run", "study.yaml", "--site", "slurm.yaml", "--dir")
    refused = place.said(*run, "refused", code=4)
    first = r"faults pilot slurm-0, pilot slurm-1[^:]*: sbatch: error: invalid partition specified: none"
    assert re.search(first, " ".join(refused.split()))
    site.write_text(f'{SLURM}pilots: {{min: 2, max: 3, walltimes: ["00:10:00", "00:05:00"]}}\n')
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        with (place.folder / "out").open("w") as out:
            process = subprocess.Popen(
                (*run, "run"), cwd=place.folder, env=place.environment, stdout=out, stderr=out
            )
        said = (place.folder / "out").read_text
        eventually(lambda: "PartitionDown" in said(), "the reason is told", DEADLINE_S)
        eventually(lambda: said().count("PartitionDown") > 1, "both are told", DEADLINE_S)
        waiting = place.status()["awaited"]
        assert {pilot["job"] for pilot in waiting} == set(cluster.jobs("PENDING"))
        assert {(pilot["state"], pilot["reason"]) for pilot in waiting} == {("PENDING", "PartitionDown")}
        limits = cluster.run("squeue", "--noheader", "--format=%l").split()
        assert sorted(limits) == ["10:00", "5:00"], "two at first, which take turns in the walltimes"
        assert "it will not start by itself: its partition is down" in " ".join(
            place.said("parsl-rasda", "status", "run").split()
        )
        assert "ended" in place.said("parsl-rasda", "cancel", "run")
        assert process.wait(timeout=DEADLINE_S) == 143
        place.said("parsl-rasda", "submit", "study.yaml", "--site", "slurm.yaml", "--dir", "queued")
        assert "PartitionDown" in place.said("parsl-rasda", "status", "queued")
        again = place.said("parsl-rasda", "submit", "queued", code=2)
        assert "has a controller in the queue" in again
        assert "ended" in place.said("parsl-rasda", "cancel", "queued")
        eventually(lambda: not cluster.jobs("PENDING,RUNNING"), "the queue is empty", DEADLINE_S)
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")
