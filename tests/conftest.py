"""What all tests share: parts of a machine that some need, and what becomes of a test without its part."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Property tests scale with the profile: plain `pytest` and `make test-unit` draw few examples, `make test` as
# many as Hypothesis does by default, always the same ones, so that CI judges the change and not its luck. No
# example has a limit of time: the machine may be busy.
FILTERED = (HealthCheck.filter_too_much,)  # of few examples many may be drawn in vain
settings.register_profile("quick", max_examples=10, deadline=None, suppress_health_check=FILTERED)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("quick")  # `--hypothesis-profile=ci` is applied after this

os.environ["PARSL_RASDA_VALIDATE"] = "1"  # every machine checks its invariants, in child processes too

# Programs of each part; RASDA_REQUIRE names the parts that must be there ("all", or "slurm,mpiexec").
PARTS = {
    "slurm": ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scontrol"),
    "mpiexec": ("mpiexec",),
    "openmpi": (),  # lies in an environment of its own, where its mpiexec does not hide MPICH's
    "rocrate": (),  # its validator lies in an environment of its own, for it wants an older `rich`
    "rabbitmq": ("rabbitmq-server", "rabbitmqctl"),
    "endpoint": ("globus-compute-endpoint",),
    "chromium": ("chromium",),
}
# Daemons are not on everybody's PATH; what pip has installed need not be either.
_ALSO = (str(Path(sys.executable).parent), "/usr/sbin", "/sbin", "/usr/lib/rabbitmq/bin")

# Minutes each: where files run side by side, these begin first, so that none is left alone at the end.
LONGEST = ("test_slurm.py", "test_orphans.py", "test_pipeline.py", "test_product.py")
LAST = "test_forkserver_slurm.py"  # beside the cluster of test_slurm its own answers too late


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST, start=-len(LONGEST))} | {LAST: 1}
    items.sort(key=lambda item: ranks.get(item.path.name, 0))


def need(part: str, *, also_missing: str = "") -> None:
    """Skip the test at hand if a part is missing, or fail it where RASDA_REQUIRE asks for that part.

    Args:
        part: A key of `PARTS`.
        also_missing: What else the test's author has found missing, in words.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ALSO))
    missing = [name for name in PARTS[part] if shutil.which(name, path=path) is None]
    missing += [also_missing] if also_missing else []
    if not missing:
        return
    words = f"{part} is not here: {', '.join(missing)}"
    required = os.environ.get("RASDA_REQUIRE", "").replace(",", " ").split()
    if "all" in required or part in required:
        pytest.fail(f"{words} (RASDA_REQUIRE={os.environ['RASDA_REQUIRE']})", pytrace=False)
    pytest.skip(words)


@pytest.fixture(scope="session", name="need")
def give_need() -> Callable[..., None]:
    """Give `need` to fixtures and tests: ``need("slurm")``."""
    return need
