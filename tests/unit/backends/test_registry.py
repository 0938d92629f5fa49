"""A site file chooses its backend; one of another distribution is chosen by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.backends.registry import build_backend
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.study import load_site
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import Capabilities

FOREIGN = """
from pydantic import BaseModel
from parsl_rasda.plugins import Plugin
from parsl_rasda.testing.backends import FakeBackend
from parsl_rasda.types import Capabilities

class Options(BaseModel):
    queue: str

class CloudBackend(FakeBackend):
    capabilities = Capabilities(sees_run_directory=False, has_control=False)

    def __init__(self, options, site, context):
        super().__init__(lambda order, epoch: {}, interactive=False, directory=context.directory)
        self.queue = options.queue

CLOUD = Plugin(CloudBackend, Options)
"""


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution with a backend, and write a site file for it."""
    installed = tmp_path / "installed"
    (installed / "cloud-1.dist-info").mkdir(parents=True)
    (installed / "cloud_backend.py").write_text(FOREIGN)
    (installed / "cloud-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cloud\nVersion: 1\n"
    )
    entry = "[parsl_rasda.backends]\ncloud = cloud_backend:CLOUD\n"
    (installed / "cloud-1.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(installed))
    file = tmp_path / "cloud.yaml"
    file.write_text("backend: cloud\nqueue: short\nnodes: 2\ngpus_per_node: 4\n")
    return file


def test_a_backend_of_another_distribution_is_built_with_its_options_and_says_what_it_can(
    cloud: Path,
) -> None:
    site = load_site(cloud)
    assert (site.slots, site.capabilities) == (8, Capabilities(sees_run_directory=False, has_control=False))
    backend = build_backend(site, BackendContext(cloud.parent))
    assert isinstance(backend, FakeBackend)
    assert backend.queue == "short"  # type: ignore[attr-defined]  # of the other distribution


def test_a_mistake_in_its_options_is_told_with_its_line(cloud: Path) -> None:
    cloud.write_text("backend: cloud\nqueue: [1]\n", encoding="utf-8")
    with pytest.raises(InvalidFileError, match=r"cloud.yaml:2: queue: "):
        load_site(cloud)


def test_a_backend_that_nobody_has_is_refused_with_those_there_are(cloud: Path) -> None:
    cloud.write_text("backend: clod\n", encoding="utf-8")
    with pytest.raises(InvalidFileError, match="did you mean cloud"):
        load_site(cloud)
