"""The CFD workflow over two endpoints: real stages, real torch ranks under mpiexec, real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parsl_rasda.orchestration.events import StartJob
from parsl_rasda.orchestration.journal import read
from tests.integration.globus.bed import REPOSITORY, GlobusBed
from tests.integration.globus.folder import Folder, verdict

pytestmark = [pytest.mark.globus, pytest.mark.mpi, pytest.mark.slow]

STUDY = REPOSITORY / "workflows" / "cfd_defiltering" / "study.yaml"
RANKS = {"accelerator": "cpu", "mpi_launcher": "hydra", "gpus_per_node": 2}
SMALL = (
    "stages.simulate.for_each={seed: [0, 100]}",
    "stages.simulate.with={grid: 32, snapshots: 32, viscosity: 4.0e-3}",
    "stages.prepare.with={filter_width: 4.0}",
    "tune.num_samples=8",
    "tune.scheduler={variant: synchronous, max_t: 2, max_workers: 2, growth: strict}",
    "tune.training.batch_size=4",
)
ON_EACH = ("stages.simulate.site=each", "stages.prepare.site=each")


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_the_same_survivors_as_on_one_site_with_data_prepared_on_each(tmp_path: Path, bed: GlobusBed) -> None:
    folder = Folder(tmp_path, bed)
    (tmp_path / "one.yaml").write_text(
        "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: 2\n"
    )
    alone = folder.start("run", str(STUDY), "--site", "one.yaml", "--dir", "alone", *words(*SMALL), "--json")
    one = folder.summary(alone)
    for site in bed.endpoints:
        folder.write_site(site, **RANKS)
    sites = [word for site in bed.endpoints for word in ("--site", f"{site}.yaml")]
    process = folder.start("run", str(STUDY), *sites, "--dir", "both", *words(*SMALL, *ON_EACH), "--json")
    both = folder.summary(process)
    assert verdict(both) == verdict(one), "to the last bit"
    records = list(read(tmp_path / "both" / "journal.jsonl"))
    started = [i.placement for r in records for i in r.instructions if isinstance(i, StartJob)]
    assert {p.site for p in started} == set(bed.endpoints)
    assert {p.width for p in started} == {1, 2}
    results = {
        run: json.loads((tmp_path / run / "stages" / "evaluate" / "0000.json").read_text())["result"]
        for run in ("alone", "both")
    }
    assert results["both"]["unseen_ratio"] == results["alone"]["unseen_ratio"] < 1
    site = both["best"]["site"]
    assert f"disk-{site}" in results["both"]["picture"], "evaluated where the checkpoint of the best lies"
    for site in bed.endpoints:
        assert list(tmp_path.glob(f"disk-{site}/*/stages/prepare/{site}/0000/*")), "prepared there"
    folder.check_books("both")
