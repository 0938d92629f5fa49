"""What the user declares: study and site files, as frozen specs without behaviour.

A study file names stages, a site file a machine; both become specs that everything else reads.

>>> from parsl_rasda.study import load_study
>>> load_study("study.yaml", ["tune.num_samples=64"], check_targets=False).stages["tune"].tune.num_samples
64

All mistakes of a file come at once, each with its line::

    study.yaml:14: stages.tune.tune.scheduler.reduction_factr: found an unknown key;
    allowed: kind, ..., reduction_factor, ... (did you mean reduction_factor?)

Reading order: `spec` (what a spec is), `pipelines` (stages), `tuning` (the method), `parameters`,
`sites`, then `document` (YAML with lines), `functions` (those that a study names) and `loading`.
"""

from __future__ import annotations

from parsl_rasda.study.loading import (
    declare_executor,
    declare_study,
    dump_site,
    dump_study,
    load_site,
    load_study,
)
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.pipelines import EACH, CommandStage, PythonStage, Stage, StudySpec, TuneStage
from parsl_rasda.study.scheduler import SchedulerSpec
from parsl_rasda.study.site_base import SiteBase
from parsl_rasda.study.sites import ExecutorSite, GlobusSiteSpec, PluginSiteSpec, SiteSpec
from parsl_rasda.study.training import TrainingSpec
from parsl_rasda.study.tuning import SearcherSpec, TuneSpec

__all__ = [
    "EACH",
    "CommandStage",
    "ExecutorSite",
    "GlobusSiteSpec",
    "ParslSiteSpec",
    "PluginSiteSpec",
    "PythonStage",
    "SchedulerSpec",
    "SearcherSpec",
    "SiteBase",
    "SiteSpec",
    "Stage",
    "StudySpec",
    "TrainingSpec",
    "TuneSpec",
    "TuneStage",
    "declare_executor",
    "declare_study",
    "dump_site",
    "dump_study",
    "load_site",
    "load_study",
]
