"""Site files that we ship: each loads, fits its provider, and gives the launch commands its machine needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.backends.parsl.htex import build_provider
from parsl_rasda.doctor.examination import Doctor
from parsl_rasda.launch.base import LaunchSettings
from parsl_rasda.launch.container import exec_words, step_options
from parsl_rasda.launch.registry import build_launcher
from parsl_rasda.runtime.process.binding import own_cores
from parsl_rasda.study import load_site
from parsl_rasda.study.controller_sites import controller_site
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName

FOLDER = Path(__file__).parents[2] / "site_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ENVIRONMENT = {
    "RASDA_ACCOUNT": "project",
    "RASDA_VENV": "/venv",
    "RASDA_WORK": "/work",
    "RASDA_IMAGE": "/images/torch.toml",
}
ALL_CORES = frozenset(range(288))
PROGRAM = ("python", "order.json")

SRUN = "srun --unbuffered --input=0 --output=0 --error=all --nodes={nodes} --ntasks={ranks} "
SRUN += "--ntasks-per-node={each} --distribution=block --nodelist={list} --overlap --mem=0 "
SRUN += "--cpus-per-task={threads} --cpu-bind=none {gres}--kill-on-bad-exit=1 --wait=0 "
SRUN += "{more}python order.json"
PALS = "mpiexec --hosts {list} --ppn {each} -n {ranks} --cpu-bind none {more}python order.json"
OPENMPI = "mpiexec --host {counted} -n {ranks} --map-by slot:OVERSUBSCRIBE --bind-to none {variables} "
OPENMPI += "{more}python order.json"

# GPUs of a node, threads of a rank, command, words of the site's own.
EXPECTED: dict[str, tuple[int, int, str, str]] = {
    "juwels_booster": (4, 12, SRUN, ""),
    "jureca_dc": (4, 32, SRUN, ""),
    "jupiter_booster": (4, 72, SRUN, ""),
    "lumi_g": (8, 7, SRUN, ""),
    "leonardo_booster": (4, 8, SRUN, ""),
    "perlmutter_gpu": (4, 16, SRUN, "--gpu-bind=none "),
    "frontier": (8, 7, SRUN, ""),
    "polaris": (4, 8, PALS, ""),
    "aurora": (12, 8, PALS, ""),
    "alps_daint": (4, 72, SRUN, ""),
    "isambard_ai": (4, 72, SRUN, ""),
    "marenostrum5_acc": (4, 20, SRUN, ""),
    "meluxina": (4, 16, SRUN, ""),
    "karolina": (8, 16, SRUN, ""),
    "vega": (4, 32, SRUN, ""),
    "deucalion": (4, 32, SRUN, ""),
    "snellius": (4, 16, SRUN, ""),
    "horeka": (4, 16, SRUN, ""),
    "delta_gpu": (4, 16, SRUN, ""),
    "vista": (1, 72, SRUN.replace("{gres}", ""), ""),
    "template_slurm": (4, 8, SRUN, ""),
    "template_pbs": (4, 8, OPENMPI, ""),
}
OPENMPI_VARIABLES = (
    "GLOO_SOCKET_IFNAME", "MKL_NUM_THREADS", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "PYTHONPATH", "PYTHONUNBUFFERED",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def site_of(name: str) -> ParslSiteSpec:
    site = load_site(name)
    assert isinstance(site, ParslSiteSpec)
    return site


def test_every_machine_that_was_promised_is_there() -> None:
    assert set(NAMES) >= {"local", "workstation", *EXPECTED}
    assert set(NAMES) - {"local", "workstation"} == set(EXPECTED), "golden commands for each"


@pytest.mark.parametrize("name", NAMES)
def test_each_site_loads_and_parsl_takes_its_provider(name: str) -> None:
    site = site_of(name)
    provider = build_provider(site, "echo ready")
    assert type(provider).__name__ == site.provider.type
    assert provider.nodes_per_block == site.nodes_per_pilot


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if "template" not in name))
def test_the_job_of_a_controller_asks_for_one_node_and_no_gpu_and_a_pilot_for_what_it_ever_does(
    name: str,
) -> None:
    site = site_of(name)
    asked = controller_site(site, inside=False).provider.options
    assert not {*asked} & {"gpus_per_node", "gres"}
    assert "gpu" not in str(asked.get("select_options", ""))
    assert build_provider(controller_site(site, inside=False), "echo ready").nodes_per_block == 1
    assert {**asked, **site.controller} == asked
    pilot = controller_site(site, inside=True).provider.options
    assert {**pilot, **site.provider.options} == pilot


@pytest.mark.parametrize("name", ["local", "workstation"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_one_machine_starts_its_ranks_without_ssh(name: str, ranks: int) -> None:
    site = site_of(name)
    nodes = (NodeSlots(NodeName("here"), tuple(range(ranks))),)
    settings = LaunchSettings(accelerator=site.accelerator, gpus_per_node=4, local=True)
    placement = Placement(SiteName(name), PilotId("p"), nodes)
    command = build_launcher(site.mpi_launcher).command(placement, PROGRAM, settings)
    assert " ".join(command.argv) == f"mpiexec -n {ranks} python order.json"
    assert command.environment["HYDRA_LAUNCHER"] == command.environment["I_MPI_HYDRA_BOOTSTRAP"] == "fork"


@pytest.mark.parametrize(("each", "nodes"), [(1, 1), (2, 1), (4, 1), (4, 4)])
def test_the_template_of_an_endpoint_loads_and_gets_its_launch_commands(each: int, nodes: int) -> None:
    site = load_site(str(FOLDER / "globus_endpoint" / "site.yaml"))
    assert isinstance(site, GlobusSiteSpec)
    assert (site.nodes, site.gpus_per_node) == (4, 4)
    asked = {"batch_system": "slurm", "nodes": site.nodes, "gpus_per_node": site.gpus_per_node}
    assert asked.items() <= dict(site.user_endpoint_config).items(), "the batch system is asked for them"
    names = [f"n{i}" for i in range(nodes)]
    slots = tuple(NodeSlots(NodeName(n), tuple(range(each))) for n in names)
    settings = LaunchSettings(accelerator=site.accelerator, gpus_per_node=4)
    placement = Placement(SiteName("s"), PilotId("p"), slots)
    command = build_launcher(site.mpi_launcher).command(placement, PROGRAM, settings)
    assert " ".join(command.argv) == SRUN.format(
        nodes=nodes,
        ranks=each * nodes,
        each=each,
        list=",".join(names),
        threads=1,
        gres="--gres=gpu:4 ",
        more="",
    )


@pytest.mark.parametrize("name", NAMES)
def test_doctors_pilot_is_one_that_parsl_takes(name: str, tmp_path: Path) -> None:
    site = site_of(name).model_copy(update={"work_dir": str(tmp_path)})
    small = Doctor(site).site
    assert isinstance(small, ParslSiteSpec)
    assert small.nodes_per_pilot <= 2
    assert build_provider(small, "echo ready").nodes_per_block == small.nodes_per_pilot


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("shape", ["1 GPU", "2 GPUs", "1 node", "4 nodes"])
def test_each_machine_gets_its_launch_commands(name: str, shape: str) -> None:
    site = site_of(name)
    gpus, threads, expected, more = EXPECTED[name]
    each, nodes = {"1 GPU": (1, 1), "2 GPUs": (2, 1), "1 node": (gpus, 1), "4 nodes": (gpus, 4)}[shape]
    names = [f"n{i}" for i in range(nodes)]
    placement = Placement(
        SiteName(name), PilotId("p"), tuple(NodeSlots(NodeName(n), tuple(range(each))) for n in names)
    )
    settings = LaunchSettings(
        options=site.launcher_options,
        threads_per_rank=site.threads_per_rank,
        accelerator=site.accelerator,
        gpus_per_node=gpus,
        environment=site.rank_environment,
    )
    command = build_launcher(site.mpi_launcher).command(placement, PROGRAM, settings)
    assert " ".join(command.argv) == expected.format(
        nodes=nodes,
        ranks=each * nodes,
        each=each,
        list=",".join(names),
        counted=",".join(f"{n}:{each}" for n in names),
        threads=threads,
        gres=f"--gres=gpu:{gpus} ",
        variables=" ".join(f"-x {v}" for v in OPENMPI_VARIABLES),
        more=more,
    )
    assert site.gpus_per_node == gpus
    assert command.environment["OMP_NUM_THREADS"] == str(threads)
    assert dict(site.environment).items() <= dict(command.environment).items()
    cores = [own_cores(gpu, command.environment, ALL_CORES) for gpu in range(gpus)]
    if not name.startswith("template"):
        assert all(of_one is not None and len(of_one) >= min(threads, 7) for of_one in cores)
        assert len(frozenset().union(*filter(None, cores))) == sum(len(c or ()) for c in cores), (
            "no core twice"
        )


@pytest.mark.parametrize(
    ("name", "step", "inside"),
    [
        ("alps_daint", "--environment=/images/torch.toml", ""),
        (
            "lumi_g",
            "",
            "singularity exec --rocm --bind /scratch --bind /project --bind /appl --bind /tmp "
            "/images/torch.toml",
        ),
    ],
)
def test_ranks_enter_the_container_as_their_centre_has_it(name: str, step: str, inside: str) -> None:
    site = site_of(name)
    assert site.container is not None
    folders = ["/scratch/project/run"]
    assert " ".join(step_options(site.container, folders)) == step
    assert " ".join(exec_words(site.container, site.accelerator, folders)) == inside
