from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.doctor.examination import Doctor
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.backend import StageTask
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import CommandStage, ParslSiteSpec
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import SiteName
from parsl_rasda.workflow.dag import Call
from parsl_rasda.workflow.site_pool import SitePool


def site(**keys: object) -> ParslSiteSpec:
    return ParslSiteSpec.model_validate(
        {"provider": {"type": "LocalProvider"}, "mpi_launcher": "process", "gpus_per_node": 1, **keys}
    )


def places(folder: Path, **keys: object) -> SitePool:
    return SitePool([site(**keys)], RunDirectory(folder), (), narrowest=1, stages_at_once=4)


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


SITES = tuple(SiteName(name) for name in ("alps", "fjord"))


def stage(at_once: int | None = None) -> CommandStage:
    resources = {} if at_once is None else {"resources": {"at_once": at_once}}
    return CommandStage.model_validate({"command": ["true"], **resources})


class Silent(FakeBackend):
    """Calls of stages are at work until somebody else ends them."""

    def __init__(self) -> None:
        super().__init__(lambda _order, _epoch: {})

    def submit_stage(self, task: StageTask) -> Future[Any]:
        return Future()


def started(at: SitePool, name: str, spec: CommandStage, where: SiteName, calls: int = 50) -> list[Any]:
    futures = (at.submit(name, spec, Call(f"{i:04d}", where, {}, str(i))) for i in range(calls))
    return [future for future in futures if future is not None]


def test_calls_take_no_more_than_the_workers_that_trials_leave_them(
    tmp_path: Path,
) -> None:
    """Nothing is opened: calls stay at work until the test says that they have ended."""
    sites = [site(name=name) for name in SITES]
    at = SitePool(sites, RunDirectory(tmp_path), (), narrowest=1, stages_at_once=3, build=lambda *_: Silent())
    assert len(started(at, "simulate", stage(2), SITES[0])) == 2, "as the stage says"
    (one,) = started(at, "render", stage(3), SITES[0])  # with the others, all that the site has
    assert started(at, "prepare", stage(3), SITES[0]) == []
    assert len(started(at, "simulate", stage(), SITES[1])) == 3, "another site has workers of its own"
    one.set_result({})
    assert started(at, "simulate", stage(2), SITES[0]) == []
    assert len(started(at, "prepare", stage(3), SITES[0])) == 1
