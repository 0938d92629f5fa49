"""The stages around the search: a study file becomes a graph of Parsl apps.

Read `dag` (stages as a graph, and what each call is), `tasks` (what a call does on the worker),
`search_run` (a `tune` stage), then `run` (how a run goes through them: `cache`, `stage_log`, `site_pool`)
and `entry` (how it is begun). `embedded` and `executor_queue` are for programs that have a Parsl of their
own: see `api`.
"""

from __future__ import annotations

from parsl_rasda.workflow.entry import resume_study, run_study
from parsl_rasda.workflow.run import RunResult

__all__ = ["RunResult", "resume_study", "run_study"]
