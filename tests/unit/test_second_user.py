"""Another user of the machine: what he finds is closed, and what he has put in our way is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir

import pytest

from parsl_rasda.agent import pilot_lease
from parsl_rasda.atomic_files import replace_file
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.private_files import private_files
from parsl_rasda.runtime.process.forkserver.client import (
    DIRECTORY_VARIABLE,
    NoServerError,
    private_directory,
)
from parsl_rasda.storage import unwritable

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


def refusal_to_nobody(act: Callable[[], object]) -> int:
    """Do something as another user, and return the number of the error that comes of it; 0 if none does."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that everybody may enter and write to, as /tmp is."""
    for folder in takewhile(Path(gettempdir()).__ne__, (tmp_path, *tmp_path.parents)):
        folder.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert refusal_to_nobody((tmp_path / "tmp" / "his").mkdir) == 0
    return tmp_path / "tmp"


def test_he_can_neither_list_nor_read_a_run(place: Path) -> None:
    run = place / "run"
    with RunDirectory(run).controlled(), private_files(run):
        replace_file(run / "order.json", "{}")
    for act in (lambda: [*run.iterdir()], (run / "order.json").read_text, (run / "x").touch):
        assert refusal_to_nobody(act) == errno.EACCES


def test_he_cannot_read_a_run_that_is_shared_with_a_group(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run").chmod(0o2770)
    with RunDirectory(place / "run").controlled():
        assert refusal_to_nobody(lambda: [*(place / "run").iterdir()]) == errno.EACCES


@pytest.mark.parametrize("trap", ["his", "open", "link"])
def test_a_folder_that_he_has_put_in_the_place_of_ours_is_refused(
    place: Path, trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / "parsl-rasda-0"
    match trap:
        case "his":
            assert refusal_to_nobody(lambda: folder.mkdir(0o700)) == 0
        case "open":
            folder.mkdir()
            folder.chmod(0o777)
        case "link":
            (place / "ours").mkdir(0o700)
            assert refusal_to_nobody(lambda: folder.symlink_to(place / "ours")) == 0
    with pytest.raises(NoServerError, match="not a folder that only this user may enter"):
        private_directory({DIRECTORY_VARIABLE: str(folder)})
    monkeypatch.setattr(pilot_lease, "FOLDER", folder)
    with pytest.raises(PermissionError, match="not a folder that only this user may enter"):
        pilot_lease.acquire("block", "mark", "study")


def test_a_link_in_the_place_of_a_probe_is_not_followed(place: Path) -> None:
    precious = place.parent / "precious"
    precious.write_text("mine")
    for name in (f".probe.{os.getpid()}", ".probe.", ".now."):
        assert refusal_to_nobody(lambda name=name: (place / name).symlink_to(precious)) == 0
    assert unwritable(place) is None
    assert precious.read_text() == "mine"
