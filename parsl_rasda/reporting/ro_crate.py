"""A run as an RO-Crate: its directory described by one file of JSON-LD, after the Workflow Run profile.

The study is the workflow, the run an action that took the study's settings and gave its files. Only what is
in the run directory is described, and nothing is copied.

Source: https://w3id.org/ro/wfrun/workflow/0.5 and https://w3id.org/ro/crate/1.1
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from parsl_rasda.orchestration.replay import origin_of
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.reporting.format import plain_json
from parsl_rasda.reporting.methods import methods_text
from parsl_rasda.reporting.runs import Run
from parsl_rasda.types import StudyState

NAME = "ro-crate-metadata.json"
_CONTEXT = "https://w3id.org/ro/crate/1.1/context"
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_WORKFLOW, _LANGUAGE, _ENGINE = "study.yaml", "#parsl_rasda-study", "https://pypi.org/project/parsl_rasda/"
_METHOD = "https://doi.org/10.1016/j.future.2025.108042"
_FILES = {  # what may be in a run directory, beside the study
    "journal.jsonl": (
        "Journal",
        "Every event, and what was decided by it.",
        "application/jsonl",
    ),
    "results.csv": ("Trials", "A row a trial.", "text/csv"),
    "metrics.csv": ("Metrics", "Every metric of every epoch of every trial.", "text/csv"),
    "best.json": ("Best trial", "Its configuration, metric and checkpoint.", "application/json"),
    "report.html": ("Report", "Figures, charts and tables of the run.", "text/html"),
    "summary.txt": ("Summary", "The outcome in words.", "text/plain"),
    "graph.graphml": ("Decision graph", "Stages and stretches of training.", "application/xml"),
}
Entity: TypeAlias = dict[str, Any]  # Any: a JSON value


def ro_crate(run: Run) -> str:
    """Return the description of a run, as JSON-LD."""
    action, *others = [*_action(run)]
    files = [*_files(run)]
    action["result"] = [_ref(one["@id"]) for one in files]
    root = _root(run, [_WORKFLOW, *(one["@id"] for one in files)], action["@id"])
    about: Entity = {
        "@id": NAME,
        "@type": "CreativeWork",
        "about": _ref("./"),
        "conformsTo": [
            _ref("https://w3id.org/ro/crate/1.1"),
            _ref("https://w3id.org/workflowhub/workflow-ro-crate/1.0"),
        ],
    }
    graph = [about, root, *_profiles(), *_workflow(run), action, *others, *files]
    document = {"@context": _CONTEXT, "@graph": graph}
    return json.dumps(plain_json(document), indent=1, ensure_ascii=False) + "\n"


def _ref(name: str) -> Entity:
    return {"@id": name}


def _root(run: Run, parts: list[str], action: str) -> Entity:
    times = [u.last_at for u in (h.usage for h in run.searches.values()) if u.last_at]
    texts = [methods_text(run, n, s) for n, s in run.summaries().items() if run.searches[n].records]
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Hyperparameter search {run.study.name}",
        "description": " ".join(texts) or f"A run of {run.study.name} that has not begun.",
        "datePublished": _moment(
            max(times) if times else RunDirectory(run.directory).study_file.stat().st_mtime
        ),
        "license": "Not stated: add the license under which the results may be used.",
        "conformsTo": [_ref(url) for url in _PROFILES],
        "hasPart": [_ref(part) for part in parts],
        "mainEntity": _ref(_WORKFLOW),
        "mentions": _ref(action),
        "citation": _ref(_METHOD),
    }


def _profiles() -> Iterator[Entity]:
    for url, (name, version) in _PROFILES.items():
        yield {"@id": url, "@type": "CreativeWork", "name": name, "version": version}
    yield {"@id": _METHOD, "@type": "ScholarlyArticle", "name": "RASDA, the method", "url": _METHOD}


def _workflow(run: Run) -> Iterator[Entity]:
    """Yield the study as a workflow, its language, and what executes it."""
    noted: Mapping[str, str] = origin_of(run.directory).get("versions", {})
    history = next(iter(run.searches.values()), None)
    version = noted.get("parsl_rasda") or (history.version if history else "") or "of before 0.2"
    inputs = [f"#parameter-{name}" for name, _ in _settings(run)]
    yield {
        "@id": _WORKFLOW,
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "name": f"Study {run.study.name}",
        "description": "What was run: stages, search space, scheduler and training, resolved.",
        "encodingFormat": "application/yaml",
        "conformsTo": _ref("https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"),
        "programmingLanguage": _ref(_LANGUAGE),
        "input": [_ref(name) for name in inputs],
        "softwareRequirements": _ref(_ENGINE),
    }
    yield {
        "@id": _LANGUAGE,
        "@type": "ComputerLanguage",
        "name": "parsl_rasda study",
        "alternateName": "YAML that parsl_rasda reads",
        "version": version,
        "url": _ENGINE,
        "identifier": _ENGINE,
    }
    yield {
        "@id": _ENGINE,
        "@type": "SoftwareApplication",
        "name": "parsl_rasda",
        "softwareVersion": version,
        "description": ", ".join(f"{name} {found}" for name, found in noted.items())
        or "Versions were not noted.",
        "url": _ENGINE,
    }
    for name, value in _settings(run):
        yield {
            "@id": f"#parameter-{name}",
            "@type": "FormalParameter",
            "additionalType": "Integer" if isinstance(value, int) else "Text",
            "conformsTo": _ref("https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"),
            "name": name,
            "valueRequired": "true",
        }


def _settings(run: Run) -> Iterator[tuple[str, int | str]]:
    """Yield what the run was given besides the workflow itself."""
    yield "seed", run.study.seed
    yield "sites", ", ".join(run.sites)
    for stage, found in run.study.tune_stages.items():
        before = "" if len(run.study.tune_stages) == 1 else f"{stage}."
        yield f"{before}num_samples", found.tune.num_samples


def _action(run: Run) -> Iterator[Entity]:
    """Yield the run as an action, then what it had as its input."""
    usages = [history.usage for history in run.searches.values()]
    began = [b for b in (_begin_of(run, name) for name in run.searches) if b is not None]
    ended = [u.finished_at or u.last_at for u in usages if u.finished_at or u.last_at]
    kinds = {StudyState.DONE: "Completed", StudyState.RUNNING: "Active"}
    status, error = kinds.get(run.state, "Failed"), run.cause
    if status == "Failed" and not error:
        error = f"{run.state.value}: nobody runs it now"
    action: Entity = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"Run of {run.study.name}",
        "description": f"{run.state.value}: {run.cause}" if run.cause else run.state.value,
        "instrument": _ref(_WORKFLOW),
        "actionStatus": f"http://schema.org/{status}ActionStatus",
        "object": [_ref(f"#value-{name}") for name, _ in _settings(run)],
    }
    if began:
        action["startTime"] = _moment(min(began))
    if ended and status != "Active":
        action["endTime"] = _moment(max(ended))
    if error:
        action["error"] = error
    yield action
    for name, value in _settings(run):
        yield {
            "@id": f"#value-{name}",
            "@type": "PropertyValue",
            "name": name,
            "value": value,
            "exampleOfWork": _ref(f"#parameter-{name}"),
        }


def _begin_of(run: Run, stage: str) -> float | None:
    return next((record.event.at for record in run.searches[stage].records), None)


def _files(run: Run) -> Iterator[Entity]:
    """Yield the files of the run directory that are there, and the best checkpoints."""
    root = run.directory.resolve()
    for folder in dict.fromkeys([run.directory, *run.directories.values()]):
        for name, (title, words, encoding) in _FILES.items():
            file = folder.resolve() / name
            if file.is_file():
                own = file.relative_to(root).as_posix()
                found = {"@id": own, "@type": "File", "name": title, "description": words}
                yield {**found, "encodingFormat": encoding, "contentSize": str(file.stat().st_size)}
    for stage, history in run.searches.items():
        best = history.summary()["best"] if history.records else None
        if best is None or best["checkpoint"] is None:
            continue
        place = run.directories[stage].resolve().joinpath("trials", *str(best["checkpoint"]).split("/")[-3:])
        if place.is_dir():
            words = f"Weights of trial {best['trial']} after epoch {best['epoch']}."
            own = f"{place.relative_to(root).as_posix()}/"
            yield {"@id": own, "@type": "Dataset", "name": "Best model", "description": words}


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
