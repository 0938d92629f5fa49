"""Imports Parsl for workers, as its own import: `multiprocessing` has its server import modules, no more."""

from __future__ import annotations

from parsl_rasda.agent.lean_parsl import import_parsl

import_parsl(checks_types=False)  # a pilot is up as soon as this is done
