r"""The versioned JSON between the controller and the ranks.

`JobSpec` goes down (a file in the attempt's directory), `EpochReport` and `JobResult` come back
(files beside it, and over the control channel where there is one). Standard library only: ranks
start in milliseconds.

An attempt's directory, ``trials/<trial>/attempt-<n>/``, is private to one fencing token: a stale
attempt that wakes up can write nowhere else. It holds::

    order.json          the JobSpec
    epochs.jsonl        one EpochReport a line, synced before anything is said of it
    epoch-000004/       a checkpoint (renamed into place when whole)
    started             made by the first rank that runs
    report.json         the JobResult, last
    log.txt             stdout and stderr of the launch
    stop                without a control channel: why the attempt must leave at its next step

Control channel: rank 0 writes lines ``\x1e{json}\n`` on its original stdout and reads ``{json}\n``
from stdin. Rank to controller: ``{"op": "ready", "once_s": 2.4}`` (first step done; seconds of the start
that no later one on this node will need), ``{"op": "epoch", ...EpochReport}``,
``{"op": "bye", ...JobResult}``, and for the agent alone ``{"op": "phase", "phase": "met"}``.
Controller to rank: ``{"op": "go", "until": 4, "replicas": 2}`` (with ``"batches"`` if they are not as many),
``{"op": "leave"}`` (at this epoch boundary), ``{"op": "preempt"}`` (checkpoint at the next step, leave),
``{"op": "beat"}`` (the controller lives).
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeAlias

from msgspec import structs

from parsl_rasda.errors import RasdaError
from parsl_rasda.plain_text import LONGEST_TRACE, cleaned
from parsl_rasda.types import (
    JSON,
    Blame,
    Fault,
    GradientNoise,
    JobId,
    Outcome,
    Phase,
    ScheduleEntry,
    TrialId,
)

FORMAT = 1
RENDEZVOUS_S = 120.0  # for ranks to meet, where a site says nothing else
STEPS = "steps"  # a file that rank 0 touches while it trains, where there is no channel
STACKS_SIGNAL = signal.SIGUSR2  # upon which a rank writes the stacks of its threads to its log
DEADLINE_MARGIN_S = 10.0  # before its deadline, a rank begins to leave
RECORD_SEPARATOR = b"\x1e"
STOP = "stop"
STARTED = "started"  # made by the first rank that runs
KNOWN = "known"  # in an attempt without a channel: how many epochs the controller has heard of


class ProtocolError(RasdaError):
    """A spec or a result of a job that this version does not understand."""

    def __init__(self, what: str, found: object) -> None:
        super().__init__(what, found)
        self.what, self.found = what, found

    def __str__(self) -> str:
        return (
            f"{self.what}: found format {self.found!r}, this parsl_rasda speaks {FORMAT}. "
            "Install the same version on the site as on the controller."
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is whole.

    In JSON it is two fields of the record that names it: ``checkpoint``, and ``checkpoint_epoch``,
    which is null if the checkpoint holds all epochs of that record.

    Attributes:
        path: Its directory, or its URL.
        epoch: Epochs finished in it.
    """

    path: str
    epoch: int


def checkpoint_fields(checkpoint: Checkpoint | None, epoch: int) -> dict[str, Any]:
    """Return the JSON fields of the checkpoint of a record at an epoch."""
    if checkpoint is None:
        return {"checkpoint": None, "checkpoint_epoch": None}
    done = None if checkpoint.epoch == epoch else checkpoint.epoch
    return {"checkpoint": checkpoint.path, "checkpoint_epoch": done}


def checkpoint_in(data: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint of a record that has an ``epoch``, as `checkpoint_fields` wrote it."""
    path, done = data.get("checkpoint"), data.get("checkpoint_epoch")
    return checkpoint_of(
        None if path is None else str(path), None if done is None else int(done), int(data["epoch"])
    )


def checkpoint_of(path: str | None, done: int | None, epoch: int) -> Checkpoint | None:
    """Return the checkpoint of a record at an epoch, by its two fields in JSON."""
    return None if path is None else Checkpoint(path, epoch if done is None else done)


@dataclass(frozen=True, slots=True)
class Training:
    """How a trial trains, the same for every trial of a study. See `study.TrainingSpec`."""

    batch_size: int = 32  # samples of a step, times the batches of the schedule
    lr_scaling: str = "auto"  # auto | linear | sqrt | none
    warmup_initial: float = 0.0  # epochs, from 0 to the full rate
    warmup_rescale: float = 0.0  # epochs, from the rate before a resize to the one after
    precision: str = "fp32"  # fp32 | bf16 | fp16
    reduce: str = "auto"  # auto | exact | ddp
    sharding: str = "none"  # none | fsdp
    clip_norm: float | None = None
    checkpoint_every: int = 1  # epochs; rungs and preemptions always checkpoint
    compile: bool = False
    stall_after_s: float = 12.0  # without a step, at least, before the ranks count as stalled


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything ranks need to train one trial from one epoch to another.

    Attributes:
        schedule: ``(epoch, replicas, batches)``: from that many finished epochs on, that many replicas share
            a step of ``batches * batch_size`` samples. A pair has as many batches as replicas. The first
            epoch is 0; the last entry holds for the coming stretch.
        epoch: Epochs already done; training resumes there.
        until: Epochs done when the job must ask (`interactive`) or end.
        search_path: Folders of the study's own modules.
        paths: ``(input, path)`` pairs: absolute paths that the site of the job must have.
        resume_from: Checkpoint directory or URL, or None to start afresh.
        falls_back_to: The checkpoint before that one, should it be damaged, or None.
        keeps_rungs: Whether the checkpoints at ``until`` stay.
        keeps_best: Whether that of the trial's best epoch stays.
        best_metric: Of the best epoch in earlier attempts, or None.
        kept: Checkpoints of earlier attempts that stay.
        obsolete: Last attempts of trials whose checkpoints on this site nobody will ask for any more.
        share_at: URL of a folder that all sites reach, for copies of this attempt's checkpoints, or None.
        deadline: Unix time [s] by which ranks must be gone, or None.
        slots: ``node:gpu`` of each rank, in rank order; a rank masks its node's GPUs itself, before
            torch is imported (Slurm rewrites masks that are set outside the step).
        rendezvous_s: How long ranks may take to meet [s], besides a little more for each rank.
        lease_s: Silence of the controller [s] after which interactive ranks leave as preempted.
        metered: Nodes whose first rank tells what the job draws there; the agent sees to its own node.
    """

    study: str
    trial: TrialId
    attempt: int
    config: Mapping[str, JSON]
    directory: str
    seed: int
    metric: str
    mode: str
    epoch: int
    until: int
    max_epochs: int
    schedule: tuple[ScheduleEntry, ...]
    world_size: int
    python: str | None = None  # "module:function"
    command: tuple[str, ...] | None = None
    inputs: Mapping[str, JSON] = field(default_factory=dict)
    search_path: tuple[str, ...] = ()
    paths: tuple[tuple[str, str], ...] = ()
    training: Training = field(default_factory=Training)
    resume_from: str | None = None
    falls_back_to: str | None = None
    keeps_rungs: bool = False
    keeps_best: bool = False
    best_metric: float | None = None
    kept: tuple[str, ...] = ()
    obsolete: tuple[JobId, ...] = ()
    share_at: str | None = None
    slots: tuple[str, ...] = ()
    accelerator: str = "cpu"  # cuda | rocm | xpu | cpu | none
    interactive: bool = False
    deadline: float | None = None
    lease_s: float = 60.0
    rendezvous_s: float = RENDEZVOUS_S
    metered: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def job(self) -> JobId:
        """The id of this attempt."""
        return JobId(self.trial, self.attempt)

    @property
    def replicas(self) -> int:
        """Replicas of the coming stretch."""
        return self.schedule[-1][1]

    @property
    def batches(self) -> int:
        """How many `batch_size` make a step of the coming stretch."""
        return self.schedule[-1][-1]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, fit for a file or a Globus Compute submission."""
        return {**asdict(self), "obsolete": [structs.asdict(job) for job in self.obsolete]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the job's spec that `to_json` wrote.

        Raises:
            ProtocolError: If another format wrote it.
        """
        values = _known(cls, data)
        values["training"] = Training(**_known(Training, data.get("training", {}), versioned=False))
        values["schedule"] = tuple(tuple(int(n) for n in entry) for entry in data["schedule"])
        values["slots"] = tuple(data.get("slots", ()))
        values["search_path"] = tuple(map(str, data.get("search_path", ())))
        values["kept"] = tuple(map(str, data.get("kept", ())))
        values["metered"] = tuple(map(str, data.get("metered", ())))
        values["obsolete"] = tuple(JobId(TrialId(j["trial"]), j["attempt"]) for j in data.get("obsolete", ()))
        values["paths"] = tuple((str(name), str(path)) for name, path in data.get("paths", ()))
        if values.get("command") is not None:
            values["command"] = tuple(values["command"])
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write the spec as a file."""
        path.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the spec from a file."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


Steps: TypeAlias = tuple[tuple[float, Mapping[str, float]], ...]
"""What a trial logged within an epoch: ``(place, metrics)``, the place in epochs, from 0 to `max_t`."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch. ``metrics`` holds at least the study's metric; NaN is allowed.

    Attributes:
        epoch: Epochs now done.
        seconds: Wall time of this epoch's training and evaluation [s], without waiting for decisions. Of a
            script, the mean over the epochs of its stretch.
        checkpoint: Newest whole checkpoint of the attempt, or None. It may hold fewer epochs: copies to a
            URL are written while training goes on.
        slots: ``node:gpu`` of each rank, as the ranks themselves saw them, in rank order.
        samples: Training samples of an epoch, or None where the training function reads them by itself.
        noise: Of the gradients in this epoch, or None where nothing shows it, as with one replica.
        steps: What was logged on the way: the place [epochs], and metrics. For curves only.
        includes_startup: Whether the start of a script is in ``seconds``, which nobody could tell apart.
        exact: Whether training gives the same bits at any width: "yes", "best effort because ...", or
            "no: ...". Empty if nobody knows, or if it is as in the report before.
        devices: Models of the ranks' GPUs, each once; empty on CPUs, or if they are as in the report before.
    """

    trial: TrialId
    attempt: int
    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    checkpoint: Checkpoint | None = None
    at: float = 0.0
    slots: tuple[str, ...] = ()
    samples: int | None = None
    noise: GradientNoise | None = None
    steps: Steps = ()
    includes_startup: bool = False
    exact: str = ""
    devices: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), **checkpoint_fields(self.checkpoint, self.epoch)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that `to_json` wrote."""
        values = _known(cls, data)
        noise = data.get("noise")
        values["noise"] = noise and GradientNoise(float(noise["gradient"]), float(noise["variance"]))
        values["metrics"] = {str(k): float(v) for k, v in data["metrics"].items()}
        values["checkpoint"] = checkpoint_in(data)
        values["slots"] = tuple(data.get("slots", ()))
        values["exact"] = cleaned(str(data.get("exact", "")))
        values["devices"] = tuple(cleaned(str(name)) for name in data.get("devices", ()))
        values["steps"] = tuple(
            (float(place), {str(k): float(v) for k, v in metrics.items()})
            for place, metrics in data.get("steps", ())
        )
        return cls(**values)


@dataclass(frozen=True, slots=True)
class JobResult:
    """How an attempt ended, in the words that `status` will show.

    Attributes:
        checkpoint: Newest whole checkpoint of this attempt, or None; for a preemption in mid-epoch
            it holds the epoch in progress.
        unreadable: The checkpoint it was ordered to go on from, if that is gone or damaged.
        phase: How far the ranks got, or None if that is not known.
        fault: What kind of thing went wrong, or None.
        exception: Class of the exception that ended the first rank to fail, or empty.
        blame: Whose fault it was, as `exits.classify_exit` judged where it ended; None if nobody has judged.
        warning: What the ranks warned of, in words.
        finished: The training function has ended its trial by itself, after a report.
        energy_j: What the job's devices have drawn [J], or None if nobody knows.
    """

    trial: TrialId
    attempt: int
    outcome: Outcome
    epoch: int
    cause: str = ""
    checkpoint: Checkpoint | None = None
    traceback: str = ""
    at: float = 0.0
    unreadable: str | None = None
    phase: Phase | None = None
    fault: Fault | None = None
    exception: str = ""
    blame: Blame | None = None
    warning: str = ""
    finished: bool = False
    energy_j: float | None = None
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), **checkpoint_fields(self.checkpoint, self.epoch)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the report that `to_json` wrote."""
        values = _known(cls, data)
        values["outcome"] = Outcome(values["outcome"])
        values["checkpoint"] = checkpoint_in(data)
        values["phase"] = Phase(data["phase"]) if data.get("phase") in set(Phase) else None
        values["fault"] = Fault(data["fault"]) if data.get("fault") in set(Fault) else None
        values["blame"] = Blame(data["blame"]) if data.get("blame") in set(Blame) else None
        values["cause"] = cleaned(str(values.get("cause", "")))
        values["traceback"] = cleaned(str(values.get("traceback", "")), LONGEST_TRACE)
        return cls(**values)


def read_epochs(directory: Path, job: JobId) -> list[EpochReport]:
    """Return the epochs an attempt has synced to disk, oldest first; a torn last line is left out."""
    try:
        lines = (directory / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    epochs = []
    for line in lines:
        try:
            epoch = EpochReport.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, ProtocolError):
            continue
        if (epoch.trial, epoch.attempt) == (job.trial, job.attempt):
            epochs.append(epoch)
    return epochs


def read_report(directory: Path, job: JobId) -> JobResult | None:
    """Return the report that the ranks wrote for this very attempt, or None."""
    try:
        report = JobResult.from_json(json.loads((directory / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, ProtocolError):
        return None
    return report if (report.trial, report.attempt) == (job.trial, job.attempt) else None


def report_of_epochs(
    directory: Path,
    order: JobSpec,
    outcome: Outcome,
    cause: str,
    *,
    phase: Phase | None = None,
    fault: Fault | None = None,
    blame: Blame | None = None,
) -> JobResult:
    """Return a report for an attempt that wrote none, made of the epochs it has left."""
    epochs = read_epochs(directory, order.job)
    saved = [e for e in epochs if e.checkpoint is not None]
    return JobResult(
        trial=order.trial,
        attempt=order.attempt,
        outcome=outcome,
        epoch=epochs[-1].epoch if epochs else order.epoch,
        cause=cause,
        checkpoint=saved[-1].checkpoint if saved else None,
        at=time.time(),
        phase=Phase.TRAINING if epochs else phase,
        fault=fault,
        blame=blame,
    )


def _known(cls: Any, data: Mapping[str, Any], *, versioned: bool = True) -> dict[str, Any]:
    if versioned and data.get("format") != FORMAT:
        raise ProtocolError(cls.__name__, data.get("format"))
    names = {f.name for f in fields(cls)}
    return {k: v for k, v in data.items() if k in names}
