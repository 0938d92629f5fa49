"""What Parsl's own processes import: all that they need, and not what Parsl brings along for others."""

from __future__ import annotations

import subprocess
import sys

import pytest


def said(program: str) -> str:
    """Return what a program prints, in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_parsl_comes_without_its_extras_and_others_may_have_them() -> None:
    program = """
import sys
from parsl_rasda.agent.lean_parsl import import_parsl
import_parsl()
import parsl.executors.high_throughput.interchange, parsl.executors.high_throughput.process_worker_pool
print([name for name in ("globus_compute_sdk", "sqlalchemy") if name in sys.modules])
import globus_compute_sdk, sqlalchemy
print(globus_compute_sdk.Executor.__name__, sqlalchemy.__name__)
"""
    assert said(program).splitlines() == ["[]", "Executor sqlalchemy"]


@pytest.mark.slow
def test_what_needs_extras_is_imported_when_it_is_used() -> None:
    program = """
import pickle, sys
from parsl_rasda.agent.lean_parsl import import_parsl
import_parsl()
import parsl, parsl.monitoring.monitoring as monitoring
starter = pickle.loads(pickle.dumps(monitoring.dbm_starter))  # as for the process that it is started in
import parsl.monitoring.db_manager as database
database.dbm_starter = print
starter("started", "sqlalchemy" in sys.modules)
from parsl.executors import GlobusComputeExecutor
from parsl.executors.globus_compute import GlobusComputeExecutor as original
print(GlobusComputeExecutor is original, "globus_compute_sdk" in sys.modules)
print(hasattr(parsl.executors, "Other"))
from parsl.executors import *
"""
    assert said(program).splitlines() == ["started True", "True True", "False"]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["'127.0.0.1'", "{'interface': 'lo'}"])
def test_a_controller_imports_no_extras_for_its_first_pilot(address: str) -> None:
    program = """
import sys
from pathlib import Path
from parsl_rasda.backends.parsl.pilot_source import OwnPilots
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.study.parsl_site import ParslSiteSpec
provider = {"type": "SlurpProvider"}
site = ParslSiteSpec.model_validate({"name": "s", "provider": provider, "address": ADDRESS})
try:
    OwnPilots(site, Path(), "mark", workers=1, on_end=print).start()
except InvalidSettingError:
    print([name for name in ("parsl", "globus_compute_sdk", "sqlalchemy") if name in sys.modules])
"""
    assert said(program.replace("ADDRESS", address)) == "['parsl']"


@pytest.mark.slow
@pytest.mark.parametrize("there", ["", "import typeguard"])
def test_workers_import_parsl_without_what_checks_types_which_others_find(there: str) -> None:
    program = f"""
import sys
{there}
from parsl_rasda.agent import worker_imports
import parsl, parsl.executors.high_throughput.executor
from parsl.launchers import SrunLauncher
print("typeguard._checkers" in sys.modules, SrunLauncher(debug="yes").debug)
from typeguard import typechecked, TypeCheckError
print(parsl.HighThroughputExecutor.__name__)
"""
    assert said(program).splitlines() == [f"{bool(there)} yes", "HighThroughputExecutor"]


@pytest.mark.slow
def test_a_parsl_that_needs_more_of_typeguard_is_imported_with_it() -> None:
    program = """
import sys
from contextlib import contextmanager
from parsl_rasda.agent import lean_parsl

@contextmanager
def lacking():
    sys.modules["typeguard"] = type(sys)("typeguard")
    try:
        yield
    finally:
        del sys.modules["typeguard"]

lean_parsl._without_typeguard = lacking
lean_parsl.import_parsl(checks_types=False)
import parsl
print("typeguard._checkers" in sys.modules, parsl.File("a").filename)
"""
    assert said(program) == "True a"


@pytest.mark.slow
def test_an_extra_that_is_there_already_stays() -> None:
    program = """
import sys, sqlalchemy
from parsl_rasda.agent.lean_parsl import import_parsl
import_parsl()
print(sys.modules["sqlalchemy"] is sqlalchemy, "globus_compute_sdk" in sys.modules)
"""
    assert said(program) == "True False"


@pytest.mark.parametrize("program", ["interchange", "process_worker_pool"])
def test_a_program_of_parsls_is_prepared_without_what_packages_import_beside_it(program: str) -> None:
    name = f"parsl.executors.high_throughput.{program}"
    words = f"""
import sys, runpy
from parsl_rasda.agent.lean_parsl import prepare_program
prepare_program({name!r})
print([name for name in ("parsl.dataflow", "parsl.providers", "sqlalchemy") if name in sys.modules])
sys.argv = ["program"]
runpy.run_module({name!r}, run_name="other", alter_sys=True)
print([m for m in sys.modules if m.startswith("parsl.") and m.count(".") == 1 and "dataflow" in m])
"""
    assert said(words).splitlines() == ["[]", "[]"]


@pytest.mark.slow
def test_all_of_parsl_is_imported_where_a_program_needs_names_of_its_packages() -> None:
    words = """
import sys
from parsl_rasda.agent.lean_parsl import prepare_program
prepare_program("parsl.dataflow.dflow")
import parsl
print(parsl.__name__, parsl.DataFlowKernel.__name__, "parsl.dataflow.dflow" in sys.modules)
"""
    assert said(words) == "parsl DataFlowKernel False"


@pytest.mark.parametrize("module", ["agent.worker_pool", "backends.parsl.interchange"])
def test_what_starts_them_imports_parsl_only_when_it_runs(module: str) -> None:
    """The pool begins by starting itself anew."""
    assert said(f"import sys, parsl_rasda.{module}; print('parsl' in sys.modules)") == "False"
