"""What devices have drawn is measured by counters of the hardware; what nobody knows stays unknown."""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from parsl_rasda.agent.energy import JobMeter
from parsl_rasda.energy import EnergyMeter, Packages, gpu_joules
from parsl_rasda.orchestration.events import JobEnded
from parsl_rasda.orchestration.journal import Journal, Record, read
from parsl_rasda.protocol import JobSpec
from parsl_rasda.reporting.html import page
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.result import StudyResult
from parsl_rasda.types import TrialId


class Nvml:
    """The library of a node with GPUs whose counters stand at 1000 J for each number, and count on."""

    NVMLError = RuntimeError

    def __init__(self) -> None:
        self.spent_j = 0.0
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802  # the library's
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802  # the library's
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802  # the library's
        if index > 3:
            raise self.NVMLError("no such GPU")
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:  # noqa: N802  # the library's
        return int(name[-1])

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802  # the library's
        return round(1000 * (1000 * handle + self.spent_j))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    library = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def order_on(*slots: str, accelerator: str = "cuda") -> JobSpec:
    return JobSpec(
        study="s",
        trial=TrialId("0"),
        attempt=1,
        config={},
        directory="d",
        seed=1,
        metric="m",
        mode="min",
        epoch=0,
        until=1,
        max_epochs=1,
        schedule=((0, 1),),
        world_size=len(slots),
        slots=slots,
        accelerator=accelerator,
    )


def test_gpus_of_a_job_are_metered_by_the_drivers_counters_whatever_the_mask_calls_them(nvml: Nvml) -> None:
    for mask in ({}, {"CUDA_VISIBLE_DEVICES": "GPU-a2,GPU-b3"}):
        meter = EnergyMeter(order_on("n:0", "n:1"), "n", mask)
        nvml.spent_j += 250.0
        assert meter.joules() == pytest.approx(500.0)
    assert nvml.open == 0, "the library is left as it was"


def test_what_has_no_counter_is_unknown(nvml: Nvml) -> None:
    for order, mask in (
        (order_on("n:7"), {}),  # the library knows no such GPU
        (order_on("n:0"), {"CUDA_VISIBLE_DEVICES": "MIG-1"}),
        (order_on("n:0", "n:1"), {"CUDA_VISIBLE_DEVICES": "0,0"}),  # slots that share one
        (order_on("n:0", accelerator="none"), {}),
    ):
        meter = EnergyMeter(order, "n", mask)
        nvml.spent_j += 1.0
        assert meter.joules() is None


def test_without_the_library_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_joules(["0"]) is None


def test_no_counter_touches_a_job_whatever_it_raises(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lambda _: {}["lost"])
    assert EnergyMeter(order_on("n:0"), "n", {}).joules() is None


def test_each_device_of_several_nodes_is_counted_once(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The agent counts on its own node, and on the others the first rank there."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for host, of_agent in (("n.site.org", {"n"}), ("m", {"m"}), ("elsewhere", set())):
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        directory = tmp_path / host
        directory.mkdir()
        order = replace(order_on("n:0", "n:1", "m:0"), directory=str(directory))
        job = JobMeter(order, {})
        assert set(job.order.metered) == {"n", "m"} - of_agent
        assert JobSpec.from_json(job.order.to_json()) == job.order
        ranks = [EnergyMeter.of_rank(job.order, rank) for rank in range(3)]
        assert [rank is not None for rank in ranks] == ["n" not in of_agent, False, "m" not in of_agent]
        nvml.spent_j += 250.0
        assert job.joules() is None, "as long as a node has told nothing, and for ever if its rank is killed"
        for rank in ranks:
            if rank is not None:
                rank.tell()
        assert job.joules() == pytest.approx(750.0)
    assert EnergyMeter.of_rank(order_on("n:0"), 0) is None, "unless it is told to"


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, shown: str, *booked: str) -> None:
    """Put commands of Slurm on PATH; `sacct` says one thing after the other."""
    for number, text in enumerate(booked):
        (folder / f"booked-{number}").write_text(text)
    answers = {"config": config, "job": shown}
    for name, text in answers.items():
        (folder / name).write_text(text)
    programs = {
        "scontrol": f'for w in "$@"; do test -f {folder}/$w && cat {folder}/$w; done; true',
        "sacct": f"n=$(ls {folder} | grep -c asked); touch {folder}/asked-$n; cat {folder}/booked-$n",
    }
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", folder.name)


RAPL = (
    "AccountingStorageType = accounting_storage/slurmdbd\nAcctGatherEnergyType    = acct_gather_energy/rapl\n"
)
WHOLE = "JobId=7 JobName=pilot NumNodes=1 OverSubscribe=NO Contiguous=0\n"
BOOKED = "pilot|90\nbatch|50\nparsl-rasda-x|0\nrasda-1|1234\n"


@pytest.mark.parametrize(
    ("case", "config", "shown", "booked", "launch", "joules"),
    [
        ("booked", RAPL, WHOLE, (BOOKED,), {}, 1234.0),
        ("booked later", RAPL, WHOLE, ("pilot|90\n", BOOKED), {}, 1234.0),
        ("no sensor", RAPL, WHOLE, ("rasda-1|0\n", "rasda-1|18446744073709551614\n"), {}, None),
        ("no plug-in", RAPL.replace("/rapl", "/none"), WHOLE, (BOOKED,), {}, None),
        ("old none", "AcctGatherEnergyType    = (null)\n", WHOLE, (BOOKED,), {}, None),
        ("others", RAPL, WHOLE.replace("=NO", "=OK"), (BOOKED,), {}, None),
        ("part of nodes", RAPL, WHOLE, (BOOKED,), {"fills_nodes": False}, None),
        ("no step", RAPL, WHOLE, (BOOKED,), {"step": ""}, None),
        ("broken", RAPL, WHOLE, (), {}, None),
    ],
)
def test_what_slurm_has_booked_counts_where_a_step_had_its_nodes_to_itself(
    case: str,
    config: str,
    shown: str,
    booked: tuple[str, ...],
    launch: Mapping[str, object],
    joules: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / case.replace(" ", "-")
    folder.mkdir()
    monkeypatch.setattr("parsl_rasda.agent.energy.BOOKED_S", 0.0)
    monkeypatch.setattr("parsl_rasda.agent.energy.unanswered", threading.Event())
    fake_slurm(folder, monkeypatch, config, shown, *booked)
    meter = JobMeter(
        order_on("n:0", "m:0", accelerator="rocm"), {"step": "rasda-1", "fills_nodes": True, **launch}
    )
    assert meter.joules() == joules
    if case in {"no sensor", "broken"}:
        assert meter.joules() is None
        assert len(list(folder.glob("asked-*"))) == 2, "who has not answered is not asked again"


def test_packages_are_added_and_their_counters_may_begin_anew(tmp_path: Path) -> None:
    names = ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl:2")
    kinds = ("package-0", "package-1", "dram", "psys")

    def stand(*microjoules: int) -> None:
        for name, kind, value in zip(names, kinds, microjoules, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "name").write_text(f"{kind}\n")
            (tmp_path / name / "energy_uj").write_text(f"{value}\n")
            (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")

    assert Packages(tmp_path).joules() is None
    stand(9_000_000, 0, 5, 0)
    packages = Packages(tmp_path)
    assert packages.joules() == 0.0
    stand(1_000_000, 3_000_000, 9_999, 8_000_000)
    assert packages.joules() == pytest.approx(5.0), "2 J and 3 J; parts and the whole are none"
    (tmp_path / names[0] / "energy_uj").unlink()
    assert packages.joules() is None


def test_a_run_tells_its_energy_by_what_became_of_its_trials(finished: Path) -> None:
    """What each job has drawn is in the journal; half of them were not metered."""
    assert StudyResult.open(finished).energy["kwh"] is None, "as in journals of before"
    records = list(read(finished / "journal.jsonl"))
    drawn: dict[str, float] = {}
    changed, jobs = [], 0
    for record in records:
        if isinstance(record.event, JobEnded):
            jobs += 1
            if jobs % 2:
                trial = record.event.job.trial
                drawn[trial] = drawn.get(trial, 0.0) + 3.6e5 * jobs
                metered = structs.replace(record.event, energy_j=3.6e5 * jobs)
                changed.append(Record(metered, record.instructions))
                continue
        changed.append(record)
    (finished / "journal.jsonl").unlink()
    with Journal(finished / "journal.jsonl", "rehearsed") as journal:
        journal.append(changed)
    energy = StudyResult.open(finished).energy
    states = {t["trial"]: t["state"] for t in read_run(finished).summaries()["tune"]["trial_list"]}
    assert (energy["jobs"], energy["jobs_metered"]) == (jobs, (jobs + 1) // 2)
    assert math.isclose(energy["kwh"], sum(drawn.values()) / 3.6e6)
    for state, kwh in energy["by_outcome"].items():
        assert math.isclose(kwh, sum(j for t, j in drawn.items() if states[t] == state) / 3.6e6)
    assert read_run(finished).document()["energy"] == energy
    assert " kWh</data>" in page(read_run(finished))
    assert f"{jobs // 2} of {jobs} jobs not metered" in page(read_run(finished))
