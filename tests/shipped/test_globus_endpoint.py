"""The endpoint template that we ship, filled in by the endpoint itself and read as it reads it."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
import yaml
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml, render_config_user_template
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

from parsl_rasda.study import load_site
from parsl_rasda.study.sites import GlobusSiteSpec

FOLDER = Path(__file__).parents[2] / "site_configs" / "globus_endpoint"
BATCH = {"partition": "gpu", "account": "p1", "walltime": "04:00:00", "nodes": 4, "gpus_per_node": 4}


def rendered(**options: Any) -> str:
    path = FOLDER / "user_config_template.yaml.j2"
    return render_config_user_template(
        None,
        path.read_text(),
        path,
        MappedPosixIdentity(pwd.getpwuid(os.getuid()), [], {}),
        json.loads((FOLDER / "user_config_schema.json").read_text()),
        options,
    )


def engine_of(**options: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(rendered(**options))["engine"]
    return found


def test_slurm_is_asked_for_gpus_on_every_node() -> None:
    engine = engine_of(
        batch_system="slurm", **BATCH, scheduler_options="#SBATCH --qos=long", cpus_per_node=64
    )
    provider = engine["provider"]
    assert provider["type"] == "SlurmProvider"
    assert provider["nodes_per_block"] == 4
    assert provider["walltime"] == "04:00:00"
    assert provider["cores_per_node"] == 64
    assert provider["scheduler_options"] == "#SBATCH --gpus-per-node=4\n#SBATCH --qos=long"
    assert engine["address"] == {"type": "address_by_hostname"}
    assert engine["max_workers_per_node"] == 18


def test_pbs_is_asked_for_gpus_and_cores_of_every_node() -> None:
    options = {"select_options": "mem=400gb", "cpus_per_node": 32, "interface": "lo"}
    engine = engine_of(batch_system="pbs", **BATCH, **options)
    provider = engine["provider"]
    assert provider["type"] == "PBSProProvider"
    assert provider["queue"] == "gpu"
    assert provider["cpus_per_node"] == 32
    assert provider["select_options"] == "ngpus=4:mem=400gb"
    assert engine["address"] == {"type": "address_by_interface", "ifname": "lo"}


@pytest.mark.parametrize(("heartbeat_s", "period_s"), [(None, 15), (10, 5), (1, 1)])
def test_the_queue_is_looked_at_twice_a_heartbeat(heartbeat_s: int | None, period_s: int) -> None:
    options = {} if heartbeat_s is None else {"heartbeat_s": heartbeat_s}
    engine = engine_of(batch_system="slurm", **BATCH, **options)
    assert engine["job_status_kwargs"]["strategy_period"] == period_s


@pytest.mark.parametrize("system", ["slurm", "pbs", "local"])
def test_the_endpoint_takes_what_the_template_gives(system: str) -> None:
    batch = {} if system == "local" else {**BATCH, "interface": "lo"}
    config = load_config_yaml(rendered(batch_system=system, trials=4, **batch))
    assert config.engine.max_workers_per_node == 6


def test_the_site_file_beside_it_fills_it_in() -> None:
    site = load_site(str(FOLDER / "site.yaml"))
    assert isinstance(site, GlobusSiteSpec)
    provider = engine_of(**site.user_endpoint_config)["provider"]
    assert provider["nodes_per_block"] == site.nodes
    assert provider["scheduler_options"] == f"#SBATCH --gpus-per-node={site.gpus_per_node}"
