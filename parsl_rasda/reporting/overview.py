"""A whole run as tables: the state of each stage, its result or why it has none, and how to go on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.format import counted, duration
from parsl_rasda.reporting.runs import Run, StageStatus
from parsl_rasda.reporting.tables import (
    STATE_STYLES,
    Summary,
    headline,
    result_text,
    status_view,
    summary_view,
)
from parsl_rasda.types import StageState, StudyState, TrialState

HOW_TO_FIX = "fix the training, then resume with --retry-failed, or run it with another --dir"
_ENDINGS = {StudyState.FAILED: "failed", StudyState.NO_SITE: "no site or pilot could be had"}


@dataclass(frozen=True, slots=True)
class JobWords:
    """What a batch system says of the job of a run's controller.

    Attributes:
        words: For people.
        may_be_queued: It has not ended, or nobody could be asked.
    """

    words: str
    may_be_queued: bool


def run_view(
    run: Run, most: int | None = None, job: JobWords | None = None, *, is_brief: bool = False
) -> RenderableType:
    """Return everything about a run: its stages, its searches with their trials, and how to go on.

    Args:
        run: The run.
        most: Trials listed at most, of each search.
        job: The job of its controller, if it was submitted.
        is_brief: Each on one line.
    """
    advice = advice_on(run, job)
    style = "cyan" if run.controller else "yellow"
    end = [Text(f"\n{advice}", style)] if advice else []
    if not run.controller and (lines := how_to_load(run)):
        end.insert(0, Text(f"\nto load the best model:\n{indent(lines, '  ')}", "dim"))
    return Group(_view(run, lambda each, name: status_view(each, most, name, is_brief=is_brief)), *end)


def outcome_view(run: Run) -> RenderableType:
    """Return the outcome of a run, on few lines."""
    return _view(run, summary_view)


def advice_on(run: Run, job: JobWords | None = None) -> str:
    """Return how to go on with a run, or who runs it; empty if it is done or nothing helps."""
    if run.controller:
        return "; ".join(filter(None, [f"being run by {run.controller}", job.words if job else ""]))
    if run.state is StudyState.DONE:
        return ""
    if job is None:
        return _how_to_go_on(run)
    words = f"its controller: {job.words}"
    return words if job.may_be_queued else "\n".join(filter(None, [words, _how_to_go_on(run)]))


def _how_to_go_on(run: Run) -> str:
    if run.trouble is None:
        return f"nobody runs it; go on with: {resume_command(run.directory)}"
    name, stage = run.trouble
    if stage.is_curable:
        return f"once this is fixed, go on with: {resume_command(run.directory)}"
    return f"no trial succeeded; {HOW_TO_FIX}" if has_no_success(run, name) else ""


def what_to_look_at(run: Run) -> list[str]:
    """Return where the first failures of a run that has no result tell more, for people who must mend it."""
    if run.controller or run.state not in {StudyState.FAILED, StudyState.NO_SITE}:
        return []
    found = []
    for name, history in run.searches.items():
        failed = [t for t in history.machine.trials.values() if t.state is TrialState.FAILED]
        for trial in failed[:3]:
            log = run.directories[name] / "trials" / trial.id / f"attempt-{trial.attempt}" / "log.txt"
            found.append(f"trial {trial.id}: {trial.reason}" + (f"; see {log}" if log.exists() else ""))
    return found or [run.cause]


def how_to_load(run: Run) -> str:
    """Return the lines of Python that load the best model; empty if there is none, or a script's own."""
    searches = [name for name in run.order if name in run.searches]
    if not searches:
        return ""
    found, tune = run.searches[searches[-1]], run.study.tune_stages[searches[-1]].tune
    best = found.summary()["best"] if found.records else None
    if tune.training.python is None or best is None or best["checkpoint"] is None:
        return ""
    module = tune.training.python.partition(":")[0]
    return (
        "from parsl_rasda import StudyResult\n"
        f"from {module} import build  # a function of yours: configuration -> model\n\n"
        f"best = StudyResult.open({str(run.directory)!r})\n"
        "model = best.load_model(build)"
    )


def has_no_success(run: Run, stage: str) -> bool:
    """Whether a stage is a search all of whose trials have failed."""
    history = run.searches.get(stage)
    return history is not None and history.machine.state is StudyState.FAILED


def resume_command(directory: Path) -> str:
    """Return the command that continues a run, where its controller was before, quoted for a shell."""
    command = "submit" if RunDirectory(directory).last_job.exists() else "resume"
    return f"parsl-rasda {command} {shlex.quote(str(directory))}"


def _view(run: Run, show: Callable[[Summary, str], RenderableType]) -> RenderableType:
    """Return a run with its searches shown by a function; a single search is shown alone."""
    summaries, name = run.summaries(), run.study.name
    if len(run.study.stages) == len(summaries) == 1:
        return show(next(iter(summaries.values())), name)
    parts: list[RenderableType] = [_run_headline(run), Padding(_stages(run, summaries), (0, 0, 0, 2))]
    for stage, summary in summaries.items():
        if run.searches[stage].records:
            parts += [Text(), show(summary, f"search {stage}")]
    return Group(*parts)


def _run_headline(run: Run) -> Text:
    state = run.state
    begun = any(s.state is not StageState.WAITING for s in run.stages.values())
    return headline(
        run.study.name, state.value, _ENDINGS.get(state, state.value) if begun else "has not begun"
    )


def _stages(run: Run, summaries: Mapping[str, Summary]) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, stage in run.stages.items():
        work = _search_work(summaries[name]) if name in summaries else _calls_work(stage)
        table.add_row(
            Text(name, "bold"),
            Text(stage.state.value.replace("_", " "), STATE_STYLES[stage.state.value]),
            work if stage.state is not StageState.WAITING else "",
            _stage_outcome(stage, summaries.get(name)),
        )
    return table


def _search_work(summary: Summary) -> str:
    trials = counted(summary["trials"]["total"], "trial") if summary["trial_list"] else ""
    return ", ".join(filter(None, [trials, duration(summary["makespan_s"]) if summary["makespan_s"] else ""]))


def _calls_work(stage: StageStatus) -> str:
    of = f"{stage.ended} of " if stage.state is not StageState.DONE else ""
    calls = f"{of}{counted(stage.calls, 'call')}" if stage.calls > 1 else ""
    if stage.state is StageState.RUNNING:
        return " ".join(filter(None, [calls, f"for {duration(max(0.0, time.time() - stage.at))}"]))
    return ", ".join(filter(None, [calls, duration(stage.seconds) if stage.seconds is not None else ""]))


def _stage_outcome(stage: StageStatus, summary: Summary | None) -> str | Text:
    """Return why a stage has no result, or the result."""
    if stage.cause:
        return Text(stage.cause, "red")
    if summary is not None:
        best: Mapping[str, Any] | None = summary["best"]
        return f"best trial {best['trial']}" if best and stage.state is StageState.DONE else ""
    return result_text(stage.result) if stage.state is StageState.DONE and stage.result is not None else ""
