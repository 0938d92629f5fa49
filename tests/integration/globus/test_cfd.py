"""The CFD workflow over two endpoints: real stages, real torch ranks under mpiexec, real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.globus.bed import REPOSITORY, GlobusBed
from tests.integration.globus.folder import Folder, verdict

pytestmark = [pytest.mark.globus, pytest.mark.mpi, pytest.mark.slow]

STUDY = REPOSITORY / "workflows" / "cfd_defiltering" / "study.yaml"
SMALL = (
    "stages.simulate.for_each={seed: [0, 100]}",
    "stages.simulate.with={grid: 32, snapshots: 32, viscosity: 4.0e-3}",
    "stages.prepare.with={filter_width: 4.0}",
    "tune.num_samples=8",
    "tune.scheduler={variant: synchronous, max_t: 2, max_workers: 2, growth: strict}",
    "tune.training.batch_size=4",
    "tune.training.keep_checkpoints=all",
)
ON_EACH = ("stages.simulate.site=each", "stages.prepare.site=each")


def test_the_same_survivors_as_on_one_site_with_data_prepared_on_each(tmp_path: Path, bed: GlobusBed) -> None:
    """Trials that outgrow the smaller site go on at the larger one, from checkpoints that both reach."""
    folder = Folder(tmp_path, bed)
    (tmp_path / "one.yaml").write_text(
        "provider: {type: LocalProvider}\naccelerator: cpu\ngpus_per_node: 2\n"
    )
    alone = folder.run("one", into="alone", study=str(STUDY), settings=SMALL)
    one = folder.summary(alone)
    for site, slots in (("alps", 1), ("fjord", 2)):
        folder.write_site(site, accelerator="cpu", mpi_launcher="hydra", gpus_per_node=slots)
    process = folder.run(
        "alps", "fjord", into="both", study=str(STUDY), settings=(*SMALL, *ON_EACH, folder.shared)
    )
    both = folder.summary(process)
    assert verdict(both) == verdict(one), "to the last bit"
    started = folder.started("both")
    assert {s.placement.site for s in started} == set(bed.endpoints)
    assert {s.placement.site for s in started if s.placement.world_size == 2} == {"fjord"}
    begun_at = {s.job.trial: s.placement.site for s in started if not s.epoch}
    for start in started:
        if start.epoch:
            attempt = next(
                tmp_path.glob(f"disk-fjord/*/trials/{start.job.trial}/attempt-{start.job.attempt}")
            )
            assert (attempt / "resumed").exists() == (begun_at[start.job.trial] == "alps")
    for site in bed.endpoints:
        assert list(tmp_path.glob(f"disk-{site}/*/stages/prepare/{site}/0000/*")), "prepared there"
    ratios = [
        json.loads((tmp_path / run / "stages" / "evaluate" / "0000.json").read_text())["result"][
            "unseen_ratio"
        ]
        for run in ("alone", "both")
    ]
    assert ratios[0] == ratios[1] < 1
    folder.check_books("both")
