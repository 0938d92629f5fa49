"""The stages around the search: a study file becomes a graph of Parsl apps.

Read `plan` (stages as a graph, and what each call is), `calls` (what a call does on the worker),
`search` (a `tune` stage), then `stages` (how a run goes through them) and `session` (how it is begun).
`embedding` is for programs that have a Parsl of their own; `embedded` and `turns` tell what it does there.
"""

from __future__ import annotations

from parsl_rasda.workflow.entry import resume_study, run_study
from parsl_rasda.workflow.run import RunResult

__all__ = ["RunResult", "resume_study", "run_study"]
