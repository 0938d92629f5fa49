from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.rundir import RunDirectory
from parsl_rasda.pipeline.doctor import Doctor
from parsl_rasda.pipeline.places import Places
from parsl_rasda.study import ParslSiteSpec


def site(**keys: object) -> ParslSiteSpec:
    return ParslSiteSpec.model_validate(
        {"provider": {"type": "LocalProvider"}, "mpi_launcher": "process", "gpus_per_node": 1, **keys}
    )


def places(folder: Path, **keys: object) -> Places:
    return Places([site(**keys)], RunDirectory(folder), (), narrowest=1)


@pytest.mark.parametrize("character", [*" \t\n\"'$&;|<>()*?[]{}!\\`^", "\N{NO-BREAK SPACE}", "\N{SNOWMAN}"])
def test_a_folder_that_parsl_would_wait_in_for_ever_is_refused_by_its_character(
    tmp_path: Path, character: str
) -> None:
    odd = tmp_path / f"my{character}runs"
    with pytest.raises(RunDirectoryError) as error:
        places(odd)
    assert f"{character!r} in its path" in str(error.value)
    with pytest.raises(RunDirectoryError) as error:
        places(tmp_path, work_dir=str(odd))
    assert f"{character!r} in its path" in str(error.value)
    with pytest.raises(RunDirectoryError):
        Doctor(site(work_dir=str(odd)))
    assert not any(tmp_path.iterdir()), "nothing was begun"


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "my runs").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "my runs")
    with pytest.raises(RunDirectoryError, match="' ' in its path"):
        places(tmp_path / "runs")


@pytest.mark.parametrize("name", ["a-b_c.d/e", "v1+2@x%:,=~#", "Läufe", "試行"])
def test_other_folders_are_taken(tmp_path: Path, name: str) -> None:
    places(tmp_path / name, work_dir=str(tmp_path / name))
