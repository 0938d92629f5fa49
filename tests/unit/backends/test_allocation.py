from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from parsl_rasda.agent.node_probe import gpu_count
from parsl_rasda.backends.allocation import (
    PilotAllocation,
    counted_here,
    in_this_allocation,
    ranks_here,
    read_allocation,
)
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.launch.srun import SrunLauncher
from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.process.forkserver.client import identity
from parsl_rasda.study.document import AsWritten
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.pilot_counts import walltime_s
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName, TrialId

FOUND: dict[str, Any] = {
    "nodes": ["n1", "n2"],
    "gpus": 4,
    "executable": "/site/python",
    "rank_client": "/site/client.py",
    "python": "3.11",
    "versions": {"parsl_rasda": version("parsl_rasda")},
    "deadline": None,
    "age_s": 0.0,
}
ORDER = JobSpec(
    study="s",
    trial=TrialId("t0"),
    attempt=1,
    config={},
    directory="/run/t0",
    seed=1,
    metric="loss",
    mode="min",
    epoch=0,
    until=2,
    max_epochs=8,
    schedule=((0, 1),),
    world_size=1,
    python="module:function",
)


def site(**fields: Any) -> ParslSiteSpec:
    declared = {"name": "s", "provider": {"type": "SlurmProvider"}, "nodes": 2, "accelerator": "cuda"}
    return ParslSiteSpec.model_validate(declared | fields)


def read(
    spec: ParslSiteSpec, *, is_local: bool = False, walltime: str | None = None, **found: Any
) -> PilotAllocation | str:
    return read_allocation(spec, FOUND | found, now=1000.0, is_local=is_local, walltime=walltime)


def test_the_pilot_counts_the_gpus_where_the_site_file_does_not() -> None:
    slots = (0, 1, 2, 3)
    assert read(site()) == PilotAllocation(
        (NodeSlots(NodeName("n1"), slots), NodeSlots(NodeName("n2"), slots)),
        None,
        "/site/python",
        "/site/client.py",
    )


def test_the_site_files_number_wins() -> None:
    found = read(site(gpus_per_node=2, python="/mine"))
    assert isinstance(found, PilotAllocation)
    assert (found.gpus_per_node, found.python) == (2, "/mine")


def test_fewer_gpus_than_declared_are_used_as_they_are_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = read(site(gpus_per_node=8))
    assert isinstance(found, PilotAllocation)
    assert found.gpus_per_node == 4
    assert found.warning == "used with 4 GPUs on n1 of the 8 declared"
    assert found.warning in caplog.text


def test_tiles_of_intels_cards_are_as_many_as_declared(caplog: pytest.LogCaptureFixture) -> None:
    found = read(site(gpus_per_node=12, accelerator="xpu"), gpus=6)
    assert isinstance(found, PilotAllocation)
    assert found.gpus_per_node == 12, "Aurora: six cards of two tiles"
    assert not caplog.text


def test_nodes_of_one_machine_get_names_of_their_own() -> None:
    found = read(site(gpus_per_node=2, accelerator="none"), is_local=True, nodes=["laptop"])
    assert isinstance(found, PilotAllocation)
    assert [node.node for node in found.nodes] == ["node0", "node1"]
    assert found.is_one_machine


def test_one_machine_does_not_offer_its_gpus_once_for_each_node() -> None:
    assert read(site(), is_local=True, nodes=["laptop"]) == (
        "laptop is one machine, whose GPUs would count once for each node; set nodes: 1"
    )


@pytest.mark.parametrize(
    ("declared", "used"), [(1, ["n1"]), (2, ["n1", "n2"]), (3, ["n1", "n2", "n3"]), (4, ["n1", "n2", "n3"])]
)
def test_inside_an_allocation_nodes_keep_the_names_that_were_found(declared: int, used: list[str]) -> None:
    spec = site(provider={"type": "LocalProvider"}, nodes=declared, gpus_per_node=2)
    found = read(spec, is_local=True, nodes=["n1", "n2", "n3"])
    assert isinstance(found, PilotAllocation)
    assert [node.node for node in found.nodes] == used
    assert found.warning == ("used with 3 nodes of the 4 declared" if declared == 4 else "")
    assert found.is_one_machine == (declared == 1)


def test_a_pilot_without_gpus_is_refused_in_words() -> None:
    assert read(site(), gpus=0) == "no cuda device was found on n1; set gpus_per_node or accelerator"


def test_a_pilot_with_another_version_is_refused_in_words() -> None:
    assert "parsl_rasda is 0.0.1 on the pilot" in str(read(site(), versions={"parsl_rasda": "0.0.1"}))


def test_only_this_machine_is_counted_here() -> None:
    sites = [
        ParslSiteSpec.model_validate({"name": kind, "provider": {"type": kind}, "accelerator": "cpu"})
        for kind in ("LocalProvider", "SlurmProvider")
    ]
    assert counted_here(sites) == {"LocalProvider": gpu_count("cpu")}


def test_the_batch_systems_end_wins_over_the_walltime() -> None:
    assert deadline_of(walltime="01:00:00") == 4600.0
    assert deadline_of(walltime="01:00:00", deadline=4000.0) == 4000.0
    assert deadline_of() is None


def deadline_of(**fields: Any) -> float | None:
    found = read(site(), **fields)
    assert isinstance(found, PilotAllocation)
    return found.deadline


def test_an_allocation_that_has_come_to_its_end_is_refused() -> None:
    assert read(site(), deadline=990.0) == "its allocation has come to its end already"
    assert read(site(), walltime="00:01:00", age_s=90.0) == "its allocation has come to its end already"
    assert isinstance(read(site(), deadline=1010.0), PilotAllocation)


def test_a_walltime_counts_from_the_job_script_not_from_the_first_task() -> None:
    assert deadline_of(walltime="01:00:00", age_s=90.0) == 4510.0


def test_an_allocation_whose_deadline_is_here_is_over() -> None:
    found = read(site(), deadline=2000.0)
    assert isinstance(found, PilotAllocation)
    assert [found.is_over(now) for now in (1900.0, 1990.0, 2100.0)] == [False, True, True]
    without = read(site())
    assert isinstance(without, PilotAllocation)
    assert not without.is_over(1e12)


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:30:00", 1800), ("1-02:00:00", 93600), ("10:00", 600), ("90", 90)]
)
def test_walltimes_are_read_as_parsl_writes_them(text: str, seconds: float) -> None:
    assert walltime_s(text) == seconds


PLAIN = ("/site/python", "-Pm", "parsl_rasda.runtime", "/run/t0/order.json")
FORKED = ("/site/python", "-S", "-E", "-s", "/site/client.py", "/run/t0/order.json")


@pytest.mark.parametrize(
    ("changes", "warm_start", "program"),
    [
        ({}, True, FORKED),
        ({}, False, PLAIN),
        ({"accelerator": "none"}, True, FORKED),
        ({"python": None, "command": ("train",)}, True, PLAIN),
    ],
)
def test_ranks_that_train_functions_are_forked(changes, warm_start, program) -> None:
    allocation = read(site())
    assert isinstance(allocation, PilotAllocation)
    assert allocation.rank_program(replace(ORDER, **changes), warm_start=warm_start) == program


def test_launches_whose_ranks_cannot_start_fork_servers_see_to_them_first() -> None:
    allocation = read(site())
    assert isinstance(allocation, PilotAllocation)
    slots = (NodeSlots(NodeName("n1"), (0,)), NodeSlots(NodeName("n2"), (0,)))
    placement = Placement(SiteName("s"), PilotId("p"), slots)
    launch = SrunLauncher().command(placement, FORKED, LaunchSettings())
    words = allocation.with_servers(launch, FORKED, placement).before
    ensure = ("/site/python", "-S", "-E", "-s", "/site/keeper.py", "ensure", "n1", "n2", "--")
    keep = ("/site/python", "-S", "-E", "-s", "/site/keeper.py", "keep")
    assert words == (*ensure, *launch.lasting, *keep)
    assert allocation.with_servers(launch, PLAIN, placement) == launch, "nobody would ask them"
    started = replace(launch, lasting=())
    assert allocation.with_servers(started, FORKED, placement) == started, "ranks can start one"


def counts_of(found: PilotAllocation | str) -> dict[str, int]:
    assert isinstance(found, PilotAllocation)
    return {str(node.node): len(node.gpus) for node in found.nodes}


@pytest.mark.parametrize(
    ("declared", "granted", "used"),
    [
        ("auto", {"n1": 4, "n2": 2}, {"n1": 4, "n2": 2}),
        (3, {"n1": 4, "n2": 2}, {"n1": 3, "n2": 2}),
        ("auto", {"n1": 4, "n2": 0}, {"n1": 4}),
        ("auto", {"n1": 4, "n2": 4}, {"n1": 4, "n2": 4}),
        (2, {"n1": 4, "n2": 4}, {"n1": 2, "n2": 2}),
        ("auto", {"n1": 0, "n2": 0}, {"n1": 4, "n2": 4}),
        ("auto", None, {"n1": 4, "n2": 4}),
    ],
)
def test_nodes_of_one_pilot_have_as_many_slots_as_each_was_given(declared, granted, used) -> None:
    assert counts_of(read(site(gpus_per_node=declared), granted=granted)) == used


def test_nodes_whose_full_names_differ_from_pbss_short_ones_are_found() -> None:
    granted = {"n1": 4, "n2": 2}
    found = read(site(), granted=granted, nodes=["n1.cluster.org", "n2.cluster.org"])
    assert counts_of(found) == {"n1.cluster.org": 4, "n2.cluster.org": 2}


@pytest.mark.parametrize(
    ("granted", "nodes", "flag"),
    [
        ({"n1": 4, "n2": 2}, ["n1"], "--gpus=4"),
        ({"n1": 4, "n2": 2}, ["n2"], "--gpus=2"),
        ({"n1": 4, "n2": 4}, ["n1", "n2"], "--gres=gpu:4"),
        ({"n1": 0, "n2": 0}, ["n1", "n2"], None),
        (None, ["n1"], "--gres=gpu:4"),
    ],
)
def test_a_step_asks_its_nodes_for_what_each_has_and_for_nothing_that_nobody_hands_out(
    granted, nodes, flag
) -> None:
    spec = site(mpi_launcher="srun")
    allocation = read(spec, granted=granted)
    assert isinstance(allocation, PilotAllocation)
    slots = tuple(NodeSlots(NodeName(name), (0,)) for name in nodes)
    order = replace(ORDER, world_size=len(nodes))
    launch = allocation.launch(order, Placement(SiteName("s"), PilotId("p"), slots), spec, SrunLauncher())
    for words in (launch.argv, launch.before):
        assert [word for word in words if word.startswith(("--gres", "--gpus"))] == ([flag] if flag else [])


def test_a_launch_says_whether_it_has_all_slots_of_its_nodes() -> None:
    spec = site(mpi_launcher="srun")
    allocation = read(spec, granted={"n1": 4, "n2": 2})
    assert isinstance(allocation, PilotAllocation)
    one, two = (NodeSlots(NodeName(name), tuple(range(count))) for name, count in (("n1", 4), ("n2", 2)))
    part = NodeSlots(NodeName("n1"), (0, 1))
    for nodes, fills in (((one, two), True), ((two,), True), ((part,), False), ((part, two), False)):
        place = Placement(SiteName("s"), PilotId("p"), nodes)
        order = replace(ORDER, world_size=place.world_size)
        assert allocation.launch(order, place, spec, SrunLauncher()).fills_nodes == fills


def local_site(**fields: Any) -> ParslSiteSpec:
    declared = {"name": "s", "provider": {"type": "LocalProvider"}, "accelerator": "none", "gpus_per_node": 2}
    return ParslSiteSpec.model_validate(declared | fields)


@pytest.mark.parametrize("names", [["n1"], ["n1", "n2", "n3"]])
def test_nodes_auto_takes_all_of_the_allocation_that_the_controller_is_in(names: list[str]) -> None:
    found = read(local_site(nodes="auto"), is_local=True, nodes=names)
    assert isinstance(found, PilotAllocation)
    assert [node.node for node in found.nodes] == names
    assert found.warning == ""


def test_nodes_of_the_own_allocation_that_are_not_used_are_told() -> None:
    found = read(local_site(), is_local=True, nodes=["n1", "n2", "n3"])
    assert isinstance(found, PilotAllocation)
    assert len(found.nodes) == 1
    assert "1 of the 3 nodes of this allocation (nodes: auto takes all)" in found.warning


def test_nodes_auto_stands_for_the_nodes_of_this_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("SLURM_JOB_NODELIST", "PBS_NODEFILE"):
        monkeypatch.delenv(variable, raising=False)
    one = in_this_allocation(local_site(nodes="auto"))
    assert one.nodes_per_pilot == 1, "this machine"
    assert "no allocation: this machine alone" in caplog.text, "it may be a login node"
    caplog.clear()
    (tmp_path / "nodes").write_text("n1\nn1\nn2\nn3\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    found = in_this_allocation(local_site(nodes="auto"))
    assert (found.nodes_per_pilot, found.slots) == (3, 6)
    assert not caplog.text
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "gone"))
    with pytest.raises(InvalidSettingError, match="cannot be listed"):
        in_this_allocation(local_site(nodes="auto"))


def test_only_the_own_allocation_can_be_taken_as_it_is() -> None:
    with pytest.raises(ValidationError, match="auto"):
        site(nodes="auto")


@pytest.fixture
def no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_NODELIST", "PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_allocation")
@pytest.mark.parametrize("accelerator", ["cpu", "none"])
def test_a_controller_knows_what_launches_of_forked_ranks_will_have(accelerator: str) -> None:
    spec = local_site(accelerator=accelerator, threads_per_rank=3, environment={"MKL_DYNAMIC": "FALSE"})
    allocation = read(spec, is_local=True)
    assert isinstance(allocation, PilotAllocation)
    slots = (NodeSlots(NodeName("n1"), (0,)),)
    launched = allocation.launch(
        ORDER,
        Placement(SiteName("s"), PilotId("p"), slots),
        spec,
        build_launcher(spec.mpi_launcher),
    ).environment
    ranks = ranks_here(spec)
    assert ranks is not None
    assert (ranks["OMP_NUM_THREADS"], ranks["MKL_DYNAMIC"]) == ("3", "FALSE")
    assert identity(ranks) == identity(dict(launched)), "else ranks would start another server"


@pytest.mark.usefixtures("no_allocation")
@pytest.mark.parametrize(
    "fields",
    [
        {"warm_start": False},
        {"python": "/another/python"},
        {"provider": {"type": "SlurmProvider"}},
        {"container": {"runtime": "apptainer", "image": "/image.sif"}},
    ],
)
def test_a_pilot_whose_ranks_are_not_forked_here_loads_no_torch(fields: dict[str, Any]) -> None:
    assert ranks_here(local_site(accelerator="cpu")) is not None
    assert ranks_here(local_site(**{"accelerator": "cpu", **fields})) is None


@pytest.mark.usefixtures("no_allocation")
def test_what_may_be_secret_is_not_written_into_the_script_of_a_pilot() -> None:
    spec = local_site(accelerator="cpu", environment={"TOKEN": "secret"})
    secret = spec.as_written({("environment", "TOKEN"): AsWritten("${TOKEN}", is_plain=True)})
    assert ranks_here(secret) is None


def test_in_an_allocation_ranks_see_to_their_servers_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert ranks_here(local_site(accelerator="cpu")) is None
