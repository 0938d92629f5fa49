"""A controller that is itself a batch job, and the jobs that come after it until its study ends.

::

    submitted/site.yaml   what is asked for: a core, or a pilot with the controller on its first node
    submitted/job.json    the last job
    submitted/rasda.*     job scripts, and what the jobs have said

Before its walltime ends a job lets its controller save and leave. That exits with 130, on which the job
queues the next one, which resumes the run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from parsl_rasda.agent.node_probe import BEGAN_VARIABLE
from parsl_rasda.agent.slurm import run_command
from parsl_rasda.atomic_files import replace_file
from parsl_rasda.backends.parsl.batch_queue import QueuedJob, can_be_asked, clusters_option, look_at
from parsl_rasda.errors import RunDirectoryError, SiteUnavailableError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.private_files import current_umask
from parsl_rasda.study.loading import dump_site, load_site
from parsl_rasda.study.parsl_site import ParslSiteSpec
from parsl_rasda.study.pilot_counts import walltime_s

_LEAVING_S = 120.0  # beyond the margin: pilots are given back, and the next job is queued
_END = {"SlurmProvider": "scancel", "PBSProProvider": "qdel"}
# Have a job started again after a failure of its node.
_RESTART = {"SlurmProvider": "#SBATCH --requeue", "PBSProProvider": "#PBS -r y"}
_VARIABLE = re.compile(r"\$\{(\w+)")
_PASSED = ("PYTHONPATH", "RASDA_ACCOUNT", "RASDA_VENV", "RASDA_WORK")

# A pilot that is asked for with the variables of another job would take its tasks and memory for its own.
_FORGET = """for name in "${!SLURM_@}"; do
  case "$name" in SLURM_CONF*|SLURM_CLUSTERS) ;; *) unset "$name" ;; esac
done"""


@dataclass(frozen=True, slots=True)
class ControllerJob:
    """The last job of a run's controller.

    Attributes:
        job: Its id.
        provider: Name of Parsl's provider.
        is_inside: It is a pilot, too.
        log: What it says.
        margin_s: How long before its end it lets the controller leave [s].
        clusters: Of Slurm, where the site names any.
    """

    job: str
    provider: str
    is_inside: bool
    log: str
    margin_s: float
    clusters: str = ""

    @property
    def in_queue(self) -> QueuedJob | None:
        """Where it stands; None if it has ended, or its batch system cannot be asked from here."""
        return look_at(self.provider, [self.job], self.clusters).get(self.job)

    @property
    def can_be_asked_for(self) -> bool:
        """Whether its batch system answers from here."""
        return can_be_asked(self.provider, self.clusters)

    @property
    def end_command(self) -> tuple[str, ...]:
        """The command that takes it from its queue, or ends it."""
        return (_END[self.provider], *clusters_option(self.clusters), self.job)

    def cancel(self) -> None:
        """Take it from its queue, or end it."""
        run_command(*self.end_command)


def prepare(run: RunDirectory, site: ParslSiteSpec) -> None:
    """Write down what the jobs of a run's controller ask for."""
    folder = _folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "site.yaml", dump_site(site))


def last_job(run: RunDirectory) -> ControllerJob | None:
    """Return the last job of a run's controller, or None if it was never submitted."""
    try:
        return ControllerJob(**json.loads(run.last_job.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def queue_job(run: RunDirectory, *, is_inside: bool, margin_s: float) -> ControllerJob:
    """Queue a job that resumes a run, and return it.

    Args:
        run: Prepared by `prepare`.
        is_inside: The job is a pilot, too, whose end the controller finds by itself.
        margin_s: How long trials may take to save and leave [s].

    Raises:
        RunDirectoryError: If the run was never submitted.
        SiteUnavailableError: In the batch system's own words, if it refuses; or if it does not answer.
        InvalidSettingError: If the provider refuses its arguments.
    """
    from parsl.providers.errors import SubmitException

    from parsl_rasda.backends.parsl.htex import build_provider, passing_on, refusal_of

    folder = _folder(run)
    if not (folder / "site.yaml").is_file():
        advice = "Submit the study: `parsl-rasda submit STUDY --site SITE --dir DIR`."
        raise RunDirectoryError(str(run.path), "was never submitted", advice)
    site = load_site(folder / "site.yaml", is_copy=True)
    if not isinstance(site, ParslSiteSpec):
        raise RunDirectoryError(str(folder / "site.yaml"), "is not a site with a provider", "Submit it anew.")
    provider = build_provider(site, "\n".join(_before(site, is_inside=is_inside)))
    provider.script_dir = str(folder)
    options = passing_on(site.provider.type, provider.scheduler_options, sorted(_variables(run, site)))
    provider.scheduler_options = f"{options}\n{_RESTART[site.provider.type]}\n"
    try:
        job = provider.submit(_command(run, provider.walltime, is_inside, margin_s), 1, "rasda")
    except SubmitException as error:
        raise SiteUnavailableError(site.name, refusal_of(error)) from error
    except subprocess.TimeoutExpired as error:
        cause = f"no answer for {error.timeout:g} s; the job may be queued nonetheless: look before you go on"
        raise SiteUnavailableError(site.name, cause) from error
    if job is None:
        raise SiteUnavailableError(site.name, "the batch system gave no id of a job")
    log = provider.resources[job]["job_stderr_path"]
    clusters = str(site.provider.options.get("clusters") or "")
    found = ControllerJob(str(job), site.provider.type, is_inside, log, margin_s, clusters)
    replace_file(run.last_job, json.dumps(asdict(found)))
    return found


def leaves_after_s(walltime: float, margin_s: float) -> float:
    """Return after how long a job lets its controller leave [s]; half of a short walltime is for work.

    Args:
        walltime: Of the job [s].
        margin_s: How long trials may take to save and leave [s].
    """
    return walltime - min(margin_s + _LEAVING_S, walltime / 2)


def _folder(run: RunDirectory) -> Path:
    return run.last_job.parent


def _before(site: ParslSiteSpec, *, is_inside: bool) -> Iterable[str]:
    """Yield the shell lines between a site's `worker_init` and the controller."""
    yield f"umask {current_umask():04o}"
    yield f"cd {shlex.quote(str(Path.cwd()))}"
    yield f'export PATH="$PATH":{shlex.quote(str(Path(sys.executable).parent))}'
    if site.provider.type == "SlurmProvider" and not is_inside:
        yield _FORGET


def _command(run: RunDirectory, walltime: str, is_inside: bool, margin_s: float) -> str:
    """Return the shell lines that resume a run, and queue the next job if this one was too short."""
    program = str(Path(sys.executable).with_name("parsl-rasda"))
    resume = shlex.join((program, "resume", "--wait", str(run.path)))
    if not is_inside:  # else its controller knows when its own allocation ends
        limit_s = leaves_after_s(walltime_s(walltime), margin_s)
        left = f'"$(( {limit_s:.0f} + ${BEGAN_VARIABLE} - $(date +%s) ))"'
        resume = f"timeout --foreground --preserve-status --signal=TERM {left} {resume}"
    next_job = shlex.join((program, "submit", "--next", str(run.path)))
    return "\n".join(
        (
            resume,
            "code=$?",
            'if [ "$code" -eq 130 ]; then',
            f'  for pause in 0 10 20; do sleep "$pause"; {next_job} && break; done',
            "fi",
            'exit "$code"',
        )
    )


def _variables(run: RunDirectory, asked: ParslSiteSpec) -> set[str]:
    """Return the variables that resuming needs, for batch systems that pass no environment on."""
    sites = [asked, *(load_site(path, is_copy=True) for path in run.sites.glob("*.yaml"))]
    texts = [written.text for site in sites for written in site.written.values()]
    named = {name for text in texts for name in _VARIABLE.findall(text)}
    return {name for name in {*named, *_PASSED} if name in os.environ}
