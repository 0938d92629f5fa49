"""The backend inside a Parsl program that has its own executors, with real trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.backends.parsl.pilot_source import ExecutorPilots
from parsl_rasda.backends.registry import build_embedded_backend
from parsl_rasda.errors import SiteUnavailableError
from parsl_rasda.orchestration.backend import Backend, BackendContext
from parsl_rasda.study import ExecutorSite
from parsl_rasda.testing.backends import BackendContract
from parsl_rasda.types import SiteName

pytestmark = [pytest.mark.parsl, pytest.mark.mpi]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from parsl.config import Config
    from parsl.dataflow.dflow import DataFlowKernel
    from parsl.executors.threads import ThreadPoolExecutor

    threads = ThreadPoolExecutor(label="gpu", max_threads=4)
    run_dir = str(tmp_path_factory.mktemp("parsl"))
    kernel = DataFlowKernel(Config([threads], run_dir=run_dir, initialize_logging=False, strategy="none"))
    yield kernel
    kernel.cleanup()


class TestAttached(BackendContract):
    site = SiteName("gpu")

    @pytest.fixture(autouse=True)
    def _kernel(self, kernel: Any) -> None:
        self.kernel = kernel

    def build(self, directory: Path) -> Backend:
        site = ExecutorSite.model_validate({"name": "gpu", "gpus_per_node": 4, "accelerator": "none"})
        return build_embedded_backend(site, BackendContext(directory), self.kernel)

    def test_the_program_keeps_its_kernel(self, tmp_path: Path) -> None:
        with self.stage(tmp_path):
            pass
        assert self.kernel.submit(pow, [3, 2], ["gpu"], False, None, {}).result(10) == 9


def test_once_the_program_has_ended_parsl_a_task_is_refused_by_its_future(tmp_path: Path) -> None:
    from parsl.config import Config
    from parsl.dataflow.dflow import DataFlowKernel
    from parsl.executors.threads import ThreadPoolExecutor

    threads = ThreadPoolExecutor(label="gpu", max_threads=1)
    kernel = DataFlowKernel(Config([threads], run_dir=str(tmp_path), initialize_logging=False))
    pilots = ExecutorPilots(kernel, "gpu")
    label = pilots.start()
    assert pilots.submit(label, pow, 3, 2).result(10) == 9
    kernel.cleanup()
    with pytest.raises(SiteUnavailableError, match="the program has ended Parsl"):
        pilots.submit(label, pow, 3, 2).result(10)
