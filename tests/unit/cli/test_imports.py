"""What a command imports before it begins: what only its end needs would let pilots and ranks start later."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import parsl_rasda.cli.main, parsl_rasda.cli.run_and_report, parsl_rasda.workflow.entry
import parsl_rasda.backends.parsl.backend
print(*sys.modules)
"""
ONLY_LATER = {"jinja2", "networkx", "parsl_rasda.reporting.html", "parsl_rasda.reporting.graph"}
ONLY_ELSEWHERE = {"torch", "numpy", "optuna", "sklearn", "matplotlib", "parsl", "globus_compute_sdk"}


def test_a_search_begins_before_what_only_its_outcome_needs_is_imported() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert not (ONLY_LATER | ONLY_ELSEWHERE) & {*found.stdout.split()}
