"""Cores next to each GPU, as a site file gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.devices import CORES_VARIABLE
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study import load_site

SITE = "provider: {type: SlurmProvider}\ngpus_per_node: 2\n"


def test_ranks_get_the_cores_in_a_variable_beside_the_sites_own(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(f'{SITE}cores_of_gpu: ["0-3", "4,6"]\nenvironment: {{NCCL_DEBUG: WARN}}\n')
    assert load_site(str(path)).rank_environment == {CORES_VARIABLE: "0-3 4,6", "NCCL_DEBUG": "WARN"}
    path.write_text(SITE)
    assert load_site(str(path)).rank_environment == {}


@pytest.mark.parametrize(
    ("cores", "said"),
    [
        ('["0-3"]', "cores of 1 GPUs"),
        ('["0-3", "4-"]', "cores such as 0-7"),
        ('["0-3", "all"]', "cores such as 0-7"),
        ('["0-3", "7-4"]', "cores such as 0-7"),
    ],
)
def test_cores_that_do_not_fit_are_refused_by_their_line(tmp_path: Path, cores: str, said: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(f"{SITE}cores_of_gpu: {cores}\n")
    with pytest.raises(InvalidFileError) as caught:
        load_site(str(path))
    assert said in str(caught.value)
    assert "site.yaml:3" in str(caught.value)
