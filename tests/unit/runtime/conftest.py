from __future__ import annotations

import tempfile

import pytest


@pytest.fixture(autouse=True, scope="session")
def scratch(tmp_path_factory):
    """Local trials without a directory of their own leave nothing behind in /tmp."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("scratch"))
    yield
    tempfile.tempdir = before
