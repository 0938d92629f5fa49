"""A search as one app of somebody's own Parsl program.

::

    prepared = prepare(simulate(...))                       # their own apps
    best = tune(Study.from_yaml("study.yaml"), data=prepared, slots=Slots("gpu", nodes=4, gpus_per_node=4))
    final = evaluate(best)

The search runs in a thread of its own: while it waits for trials, no thread of Parsl's waits with it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from parsl_rasda.errors import InvalidSettingError, RasdaError, StageFailedError
from parsl_rasda.orchestration.admission import check_search_fit, check_searchers, tune_problems
from parsl_rasda.orchestration.history import save_run
from parsl_rasda.orchestration.rundir import RunDirectory
from parsl_rasda.orchestration.view import NoView, View
from parsl_rasda.study import ParslSiteSpec, StudySpec, TuneStage, load_study
from parsl_rasda.vocabulary import JSON, SiteName, StudyState

if TYPE_CHECKING:
    from parsl.dataflow.futures import AppFuture

_INTERNAL = "_parsl_internal"  # Parsl's own threads for join apps; ours return at once


@dataclass(frozen=True, slots=True)
class Study:
    """A study with one search, for use in a Parsl program."""

    spec: StudySpec

    def __post_init__(self) -> None:
        """Refuse a study that is not one search."""
        if len(self.spec.tune_stages) != 1:
            found = f"{len(self.spec.tune_stages)} tune stages"
            raise InvalidSettingError(f"study {self.spec.name}", found, "exactly one")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Return the study of a file; stages beside its search are left to the program.

        Raises:
            InvalidFileError: With every mistake of the file.
        """
        return cls(load_study(path, overrides, check_tune=tune_problems))

    @classmethod
    def from_mapping(cls, tune: Mapping[str, Any], *, name: str = "study", seed: int = 0) -> Self:
        """Return a study declared in code, with the keys of a study file's ``tune``.

        Raises:
            ValueError: Pydantic's, if a key or a value is wrong.
        """
        return cls(StudySpec.model_validate({"name": name, "seed": seed, "tune": dict(tune)}))

    @property
    def search(self) -> tuple[str, TuneStage]:
        """The name and the declaration of its search."""
        return next(iter(self.spec.tune_stages.items()))

    @property
    def alone(self) -> StudySpec:
        """The search without the stages around it, which are the program's."""
        name, stage = self.search
        own = stage.model_copy(update={"needs": {}, "for_each": {}})
        return self.spec.model_copy(update={"stages": {name: own}})


@dataclass(frozen=True, slots=True)
class Slots:
    """GPU slots behind an executor of a Parsl program.

    Attributes:
        executor: Label of the executor. It needs a worker for each trial that runs at a time.
        nodes: Nodes of one block.
        gpus_per_node: GPUs of each; with ``accelerator="cpu"``, ranks.
        accelerator: ``cuda``, ``rocm``, ``xpu``, ``cpu``, or ``none`` for purely logical slots.
        mpi_launcher: ``hydra``, ``openmpi``, ``srun``, or ``process`` for one process a trial.
        settings: Further keys of a site file, for example ``environment``.
    """

    executor: str
    nodes: int = 1
    gpus_per_node: int = 1
    accelerator: str = "cuda"
    mpi_launcher: str = "hydra"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def site(self) -> ParslSiteSpec:
        """Return the site that they amount to."""
        return ParslSiteSpec.model_validate(
            {
                "name": self.executor,
                "provider": {"type": "LocalProvider"},  # the executor's own provider stays in charge
                "nodes": self.nodes,
                "gpus_per_node": self.gpus_per_node,
                "accelerator": self.accelerator,
                "mpi_launcher": self.mpi_launcher,
                # Where this program finds its modules, its ranks must find them too.
                "environment": {"PYTHONPATH": os.pathsep.join(_own_modules())},
                **self.settings,
            }
        )


def tune(
    study: Study,
    *,
    slots: Slots,
    directory: str | Path | None = None,
    view: View | None = None,
    **inputs: Any,
) -> AppFuture:
    """Start a search in the loaded DataFlowKernel and return the future of its best trial.

    The result is a mapping: ``trial``, ``metric``, ``epoch``, ``config``, ``checkpoint``, ``replicas``.

    Args:
        study: What to search.
        slots: Where.
        directory: Run directory; one that holds a run of this study is taken up again. Without it,
            a new one below ``runs/``.
        view: Who watches.
        inputs: Arguments for the training function, in ``trial.inputs``; futures and Files are
            waited for, as in any app.

    Raises:
        InvalidSettingError: If Parsl has no executor of that label, or the searcher refuses its options.
        PlacementImpossibleError: If a trial could never have the slots it needs.
        NoDataFlowKernelError: Parsl's, if none is loaded.
    """
    import parsl

    kernel = parsl.dfk()
    if slots.executor not in kernel.executors:
        labels = ", ".join(label for label in kernel.executors if label != _INTERNAL)
        raise InvalidSettingError(
            "slots.executor", slots.executor, f"a label of the loaded executors: {labels}"
        )
    name, stage = study.search
    site = slots.site()
    check_searchers(study.spec)
    check_search_fit(stage.tune, [site], {})
    run = RunDirectory(_run_directory(study, directory).resolve())

    def begin(**arrived: Any) -> Future[_Ended]:
        return _in_a_thread(lambda: _search(kernel, study, site, run, arrived, view or NoView()), name)

    begin.__name__ = f"rasda_{study.spec.name}"
    ended = kernel.submit(
        begin,
        app_args=(),
        app_kwargs=inputs,
        executors=[_INTERNAL],
        cache=False,
        ignore_for_cache=None,
        join=True,
    )
    return kernel.submit(
        best_or_raise,
        app_args=(ended,),
        app_kwargs={},
        executors=[_INTERNAL],
        cache=False,
        ignore_for_cache=None,
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a search ended: as a value, because Parsl hides a join app's exception in its own."""

    best: Any = None
    error: Exception | None = None


def best_or_raise(ended: _Ended) -> Any:
    """Return the best trial of a search, or raise what it failed with."""
    if ended.error is not None:
        raise ended.error
    return ended.best


def _search(
    kernel: Any,  # parsl.DataFlowKernel, untyped
    study: Study,
    site: ParslSiteSpec,
    run: RunDirectory,
    inputs: Mapping[str, Any],
    view: View,
) -> Any:
    from parsl_rasda.pipeline.search import Search
    from parsl_rasda.runners.parsl_runner import ParslRunner

    name, stage = study.search
    runner = ParslRunner.attached(kernel, site.name, site, run.path / "runners" / site.name)
    given: dict[str, JSON] = {**stage.with_, **{k: _plain(name, k, v) for k, v in inputs.items()}}
    search = Search(study.spec, name, stage.tune, {SiteName(site.name): site}, runner, run, run, given)
    with run.controlled():
        save_run(run, study.alone, [site], [Path.cwd()])
        best = search.run(view)
    if search.state is not StudyState.DONE:
        raise StageFailedError(name, search.cause)
    return best


def _plain(stage: str, key: str, value: Any) -> JSON:
    """Return an input as JSON; a File becomes its path."""
    if hasattr(value, "filepath"):
        return str(value.filepath)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(stage, key, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(stage, key, v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    allowed = "numbers, texts, lists, mappings, paths and Parsl Files: ranks are other processes"
    raise InvalidSettingError(f"input {key} of stage {stage}", type(value).__name__, allowed)


def _own_modules() -> list[str]:
    """Return the folders that this program imports from, beside what is installed."""
    installed = (sys.prefix, sys.base_prefix)
    return [str(Path(path).resolve()) for path in sys.path if not path.startswith(installed)]


def _in_a_thread(work: Any, name: str) -> Future[_Ended]:
    future: Future[_Ended] = Future()

    def run() -> None:
        try:
            future.set_result(_Ended(best=work()))
        except RasdaError as error:
            future.set_result(_Ended(error=error))
        except Exception as error:  # noqa: BLE001  it becomes the exception of the app's future
            future.set_result(_Ended(error=error))

    threading.Thread(target=run, name=f"rasda-{name}", daemon=True).start()
    return future


def _run_directory(study: Study, directory: str | Path | None) -> Path:
    if directory is not None:
        return Path(directory)
    base = Path("runs") / study.spec.name
    taken = 1
    while base.exists():
        taken += 1
        base = base.with_name(f"{study.spec.name}-{taken}")
    return base
