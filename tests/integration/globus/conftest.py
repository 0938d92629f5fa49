from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.globus.bed import GlobusBed


@pytest.fixture(scope="session")
def bed(need: Callable[..., None]) -> Iterator[GlobusBed]:
    """Give the two endpoints that all tests of this folder share."""
    need("rabbitmq")
    need("endpoint")
    with GlobusBed("alps", "fjord") as bed:
        yield bed
