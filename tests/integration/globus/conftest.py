from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.globus.bed import GlobusBed
from tests.integration.globus.folder import Folder, verdict


@pytest.fixture(scope="session")
def bed(need: Callable[..., None]) -> Iterator[GlobusBed]:
    """Give the two endpoints that all tests of this folder share."""
    need("rabbitmq")
    need("endpoint")
    with GlobusBed("alps", "fjord") as bed:
        yield bed


@pytest.fixture
def folder(tmp_path: Path, bed: GlobusBed) -> Folder:
    bed.await_endpoints()  # the test before may have killed one and started it again
    return Folder(tmp_path, bed)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, bed: GlobusBed) -> dict[str, Any]:
    """The same study on one site, without Globus Compute."""
    folder = Folder(tmp_path_factory.mktemp("alone"), bed)
    folder.write_study(epoch_s=0.1)
    warming = [folder.run(site, into=f"warm-{site}") for site in bed.endpoints]  # until both are up
    found = verdict(folder.summary(folder.run("local")))
    assert [verdict(folder.summary(process)) for process in warming] == [found, found]
    return found
