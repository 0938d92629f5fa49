"""Whole commands, written by hand from the launchers' manuals: one GPU, two, one node, four nodes."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from parsl_rasda.errors import InvalidFileError, InvalidSettingError
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName

PROGRAM = ("python", "-m", "parsl_rasda.runtime", "order.json")
CUDA = LaunchSettings(accelerator="cuda", gpus_per_node=4, threads_per_rank=8)


def on(*nodes: tuple[str, tuple[int, ...]]) -> Placement:
    return Placement(SiteName("site"), PilotId("site-0"), tuple(NodeSlots(NodeName(n), g) for n, g in nodes))


ONE_GPU = on(("n1", (3,)))
TWO_GPUS = on(("n1", (1, 3)))
ONE_NODE = on(("n1", (0, 1, 2, 3)))
FOUR_NODES = on(*((f"n{i}", (0, 1, 2, 3)) for i in range(1, 5)))
UNEVEN = on(("n1", (0, 1)), ("n2", (0,)))

GOLDEN = [
    ("hydra", ONE_GPU, "mpiexec -hosts n1 -ppn 1 -n 1"),
    ("hydra", TWO_GPUS, "mpiexec -hosts n1 -ppn 2 -n 2"),
    ("hydra", ONE_NODE, "mpiexec -hosts n1 -ppn 4 -n 4"),
    ("hydra", FOUR_NODES, "mpiexec -hosts n1,n2,n3,n4 -ppn 4 -n 16"),
    ("hydra", UNEVEN, "mpiexec -machinefile hosts.txt -n 3"),
    ("openmpi", ONE_GPU, "mpiexec --host n1:1 -n 1 --map-by slot:OVERSUBSCRIBE --bind-to none {x}"),
    ("openmpi", TWO_GPUS, "mpiexec --host n1:2 -n 2 --map-by slot:OVERSUBSCRIBE --bind-to none {x}"),
    ("openmpi", ONE_NODE, "mpiexec --host n1:4 -n 4 --map-by slot:OVERSUBSCRIBE --bind-to none {x}"),
    (
        "openmpi",
        FOUR_NODES,
        "mpiexec --host n1:4,n2:4,n3:4,n4:4 -n 16 --map-by slot:OVERSUBSCRIBE --bind-to none {x}",
    ),
    ("openmpi", UNEVEN, "mpiexec --host n1:2,n2:1 -n 3 --map-by slot:OVERSUBSCRIBE --bind-to none {x}"),
    ("srun", ONE_GPU, "{s} --nodes=1 --ntasks=1 --ntasks-per-node=1 --distribution=block --nodelist=n1 {e}"),
    ("srun", TWO_GPUS, "{s} --nodes=1 --ntasks=2 --ntasks-per-node=2 --distribution=block --nodelist=n1 {e}"),
    ("srun", ONE_NODE, "{s} --nodes=1 --ntasks=4 --ntasks-per-node=4 --distribution=block --nodelist=n1 {e}"),
    (
        "srun",
        FOUR_NODES,
        "{s} --nodes=4 --ntasks=16 --ntasks-per-node=4 --distribution=block --nodelist=n1,n2,n3,n4 {e}",
    ),
    ("srun", UNEVEN, "{s} --nodes=2 --ntasks=3 --distribution=arbitrary {e}"),
    ("process", ONE_GPU, ""),
    ("process", TWO_GPUS, ""),
    ("process", ONE_NODE, ""),
    ("process", FOUR_NODES, ""),
    ("pals", TWO_GPUS, "mpiexec --hosts n1 --ppn 2 -n 2 --cpu-bind none"),
    ("pals", FOUR_NODES, "mpiexec --hosts n1,n2,n3,n4 --ppn 4 -n 16 --cpu-bind none"),
    ("pals", UNEVEN, "mpiexec --hosts n1,n2 --ppn 2 -n 3 --cpu-bind none"),
    ("flux", TWO_GPUS, "flux run --unbuffered --nodes=1 --ntasks=2 --requires=hosts:n1 {o}"),
    ("flux", FOUR_NODES, "flux run --unbuffered --nodes=4 --ntasks=16 --requires=hosts:n1,n2,n3,n4 {o}"),
    ("ibrun", TWO_GPUS, "ibrun -n 2"),
    ("ibrun", FOUR_NODES, "ibrun -n 16"),
]
REPEATED = {
    "o": "-o cpu-affinity=off -o gpu-affinity=off",
    "x": "-x MKL_NUM_THREADS -x OMP_NUM_THREADS -x OPENBLAS_NUM_THREADS -x PYTHONPATH -x PYTHONUNBUFFERED",
    "s": "srun --unbuffered --input=0 --output=0 --error=all",
    "e": "--overlap --mem=0 --cpus-per-task=8 --cpu-bind=none --gres=gpu:4 --kill-on-bad-exit=1 --wait=0",
}


@pytest.mark.parametrize(("name", "placement", "expected"), GOLDEN)
def test_the_whole_command_is_what_the_manual_asks_for(
    name: str, placement: Placement, expected: str
) -> None:
    argv = build_launcher(name).command(placement, PROGRAM, CUDA).argv
    assert argv == (*expected.format(**REPEATED).split(), *PROGRAM)


def test_on_its_own_machine_hydra_starts_neither_ssh_nor_srun() -> None:
    command = build_launcher("hydra").command(TWO_GPUS, PROGRAM, LaunchSettings(local=True))
    assert command.argv == ("mpiexec", "-n", "2", *PROGRAM)
    assert command.environment["HYDRA_LAUNCHER"] == "fork"


def test_on_its_own_machine_openmpi_may_start_more_ranks_than_cores() -> None:
    command = build_launcher("openmpi").command(FOUR_NODES, PROGRAM, LaunchSettings(local=True))
    assert command.argv[:5] == ("mpiexec", "--host", "localhost:16", "-n", "16")
    assert command.environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"


def test_an_uneven_step_of_slurm_reads_its_hosts_from_a_file_in_rank_order() -> None:
    command = build_launcher("srun").command(UNEVEN, PROGRAM, LaunchSettings(directory="/run/t1"))
    assert command.files == {"/run/t1/hosts.txt": "n1\nn1\nn2\n"}
    assert command.environment["SLURM_HOSTFILE"] == "/run/t1/hosts.txt"


def test_a_step_without_gpus_asks_for_none() -> None:
    command = build_launcher("srun").command(ONE_NODE, PROGRAM, LaunchSettings(gpus_per_node=4))
    assert not [flag for flag in command.argv if flag.startswith("--gres")]


@pytest.mark.parametrize("name", ["hydra", "openmpi", "srun", "process", "pals", "flux", "ibrun"])
def test_the_sites_options_come_last_so_that_they_win(name: str) -> None:
    settings = LaunchSettings(options=("--gres=none", "-v"))
    argv = build_launcher(name).command(TWO_GPUS, PROGRAM, settings).argv
    assert argv[-len(PROGRAM) - 2 :] == ("--gres=none", "-v", *PROGRAM)


@pytest.mark.parametrize("name", ["hydra", "openmpi", "srun", "process", "pals", "flux", "ibrun"])
def test_every_rank_has_its_threads_and_the_sites_variables(name: str) -> None:
    settings = LaunchSettings(threads_per_rank=3, environment={"NCCL_DEBUG": "WARN"})
    environment = build_launcher(name).command(TWO_GPUS, PROGRAM, settings).environment
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["OPENBLAS_NUM_THREADS"] == "1", "as in ranks that are forked"
    assert environment["NCCL_DEBUG"] == "WARN"


def test_openmpi_forwards_the_sites_variables_to_other_nodes() -> None:
    settings = LaunchSettings(environment={"NCCL_DEBUG": "WARN"})
    argv = build_launcher("openmpi").command(FOUR_NODES, PROGRAM, settings).argv
    assert ("-x", "NCCL_DEBUG") in itertools.pairwise(argv)


def test_an_unknown_launcher_is_refused_with_the_list_of_those_there_are() -> None:
    with pytest.raises(InvalidFileError) as caught:
        build_launcher("aprun")
    known = "hydra, openmpi, srun, process, pals, flux, ibrun (did you mean srun?)"
    assert str(caught.value) == f"mpi_launcher: found 'aprun'; allowed: {known}"


def test_a_step_bears_the_name_of_its_attempt_by_which_it_can_be_cancelled() -> None:
    settings = LaunchSettings(directory="/run/trials/0003/attempt-2")
    command = build_launcher("srun").command(TWO_GPUS, PROGRAM, settings)
    assert command.step.startswith("0003-attempt-2-")
    assert f"--job-name={command.step}" in command.argv


@pytest.mark.parametrize("name", ["srun", "flux"])
def test_a_step_has_not_the_name_of_one_of_another_study_in_the_same_allocation(name: str) -> None:
    places = ("/runs/a-0/trials/0003/attempt-2", "/runs/a-1/trials/0003/attempt-2")
    one, other = (
        build_launcher(name).command(TWO_GPUS, PROGRAM, replace(CUDA, directory=place)) for place in places
    )
    assert set(one.argv).symmetric_difference(other.argv), "one must not be cancelled with the other"
    assert (one.step, one.cancel) != (other.step, other.cancel)


def test_a_process_alone_says_so_whatever_step_its_pilot_runs_in() -> None:
    environment = build_launcher("process").command(TWO_GPUS, PROGRAM, LaunchSettings()).environment
    assert (environment["PARSL_RASDA_RANK"], environment["PARSL_RASDA_SIZE"]) == ("0", "1")


def test_a_lasting_step_sees_what_the_ranks_steps_see() -> None:
    command = build_launcher("srun").command(TWO_GPUS, PROGRAM, CUDA)
    assert " ".join(command.lasting) == (
        "srun --unbuffered --input=none --nodes=1 --ntasks=1 --nodelist={node} --overlap --mem=0 "
        "--cpu-bind=none --gres=gpu:4 --job-name=parsl-rasda-forkserver"
    )
    assert not [n for n in ("hydra", "openmpi") if build_launcher(n).command(TWO_GPUS, PROGRAM, CUDA).lasting]


def test_hydras_file_of_hosts_has_the_counts_of_uneven_nodes() -> None:
    command = build_launcher("hydra").command(UNEVEN, PROGRAM, LaunchSettings(directory="/run/t1"))
    assert command.files == {"/run/t1/hosts.txt": "n1:2\nn2:1\n"}
    local = build_launcher("hydra").command(UNEVEN, PROGRAM, LaunchSettings(local=True))
    assert (local.argv, local.files) == (("mpiexec", "-n", "3", *PROGRAM), {})


@pytest.mark.parametrize(
    ("gpus", "flag"), [("gres", "--gres=gpu:4"), ("gpus-per-node", "--gpus-per-node=4"), ("none", None)]
)
def test_srun_asks_for_gpus_as_the_cluster_wants_it_in_ranks_and_keepers(gpus: str, flag: str | None) -> None:
    command = build_launcher({"kind": "srun", "gpus": gpus}).command(TWO_GPUS, PROGRAM, CUDA)
    for words in (command.argv, command.lasting):
        assert [w for w in words if "gres" in w or "gpus" in w] == ([flag] if flag else [])


@pytest.mark.parametrize("name", ["hydra", "openmpi", "pals"])
def test_a_site_may_name_the_program_of_its_mpi_library(name: str) -> None:
    settings = replace(CUDA, is_contained=True)
    command = build_launcher({"kind": name, "command": "mpiexec.mine"}).command(TWO_GPUS, PROGRAM, settings)
    usual = build_launcher(name).command(TWO_GPUS, PROGRAM, settings)
    assert command.argv == ("mpiexec.mine", *usual.argv[1:])
    assert command.lasting == ("mpiexec.mine", *usual.lasting[1:])


def test_srun_refuses_another_way_to_ask_for_gpus() -> None:
    with pytest.raises(InvalidFileError, match=r"gpus.*'gpu-bind'"):
        build_launcher({"kind": "srun", "gpus": "gpu-bind"})


def test_steps_may_ask_for_a_network_and_a_quality_of_service() -> None:
    settings = replace(CUDA, options=("--network=disable_rdzv_get", "--qos=debug"))
    command = build_launcher("srun").command(TWO_GPUS, PROGRAM, settings)
    assert command.argv[-len(PROGRAM) - 2 : -len(PROGRAM)] == settings.options
    assert command.lasting[-2:] == settings.options


def test_ibrun_is_told_the_nodes_of_the_placement_alone() -> None:
    environment = build_launcher("ibrun").command(FOUR_NODES, PROGRAM, CUDA).environment
    assert environment["SLURM_NODELIST"] == environment["SLURM_JOB_NODELIST"] == "n1,n2,n3,n4"
    assert (environment["SLURM_NNODES"], environment["SLURM_NTASKS"]) == ("4", "16")
    assert environment["SLURM_TASKS_PER_NODE"] == "4(x4)"
    assert build_launcher("ibrun").command(ONE_GPU, PROGRAM, CUDA).environment["SLURM_TASKS_PER_NODE"] == "1"


def test_a_flux_job_whose_launcher_was_killed_can_be_found_by_a_name_that_no_other_run_has() -> None:
    names = {}
    for run in ("/run", "/a+run", "/other/run"):
        for attempt in ("attempt-2", "attempt-20"):
            settings = replace(CUDA, directory=f"{run}/trials/0003/{attempt}")
            command = build_launcher("flux").command(TWO_GPUS, PROGRAM, settings)
            (name,) = [word.partition("=")[2] for word in command.argv if word.startswith("--job-name=")]
            assert name.startswith(f"0003-{attempt}-")
            assert command.cancel[:2] == ("flux", "pkill")
            names[name] = command.cancel[2].removeprefix("name:")
    assert len(names) == 6
    for mine, pattern in names.items():
        assert [name for name in names if re.search(pattern, name)] == [mine], "as flux pkill matches"


@pytest.mark.parametrize(
    ("name", "counts"), [("flux", (2, 1)), ("ibrun", (2, 1)), ("pals", (1, 2)), ("pals", (2, 1, 1, 2))]
)
def test_a_launcher_never_puts_ranks_on_other_nodes_than_their_slots(
    name: str, counts: tuple[int, ...]
) -> None:
    placement = on(*((f"n{i}", tuple(range(count))) for i, count in enumerate(counts)))
    with pytest.raises(
        InvalidSettingError, match=f"mpi_launcher: found '{name}, to place {counts[0]} on n0, "
    ):
        build_launcher(name).command(placement, PROGRAM, CUDA)
