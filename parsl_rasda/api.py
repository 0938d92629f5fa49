"""A search as one app of somebody's own Parsl program.

::

    prepared = prepare(simulate(100))                       # their own apps
    study = Study.from_yaml("study.yaml")
    best = tune(study, data=prepared, slots=Slots("gpu", nodes=4, gpus_per_node=4))
    final = evaluate(best)

The search runs in a thread of its own: while it waits for trials, no thread of Parsl's waits with it.
`workflow.embedded` is what happens in that thread.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from parsl_rasda.diagnostics import listing
from parsl_rasda.errors import InvalidSettingError, RasdaError, RunDirectoryError, StageFailedError
from parsl_rasda.orchestration.admission import check_search_fit, tune_problems
from parsl_rasda.orchestration.progress import GuardedProgress, NoProgress, ProgressReporter
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.plain_text import words_of
from parsl_rasda.result import StudyResult
from parsl_rasda.study import (
    ExecutorSite,
    StudySpec,
    TuneStage,
    declare_executor,
    declare_study,
    load_study,
)
from parsl_rasda.study.loading import search_path
from parsl_rasda.workflow.earlier_studies import learn
from parsl_rasda.workflow.program_functions import FOLDER, kept, target_of, write

if TYPE_CHECKING:
    from parsl.dataflow.dflow import DataFlowKernel
    from parsl.dataflow.futures import AppFuture

_INTERNAL = "_parsl_internal"  # Parsl's own threads for join apps; ours return at once
_OUR_ARGUMENTS = ("study", "slots", "directory", "progress", "data_flow_kernel")


@dataclass(frozen=True, init=False)
class Study:
    """A study of one search, for use in a Parsl program.

    ::

        study = Study(
            tune={
                "metric": "val_loss",
                "num_samples": 16,
                "scheduler": {"max_t": 8, "max_workers": 4},
                "search_space": {"lr": {"float": [1e-4, 1e-1], "log": True}},
                "training": {"python": "train:train"},
            },
            name="cavity",
        )

    Attributes:
        spec: What its run directory will say: the search without the stages around it.
        needs: Names of the inputs that `tune` must be given.
        search_path: Folders where its functions are, before those that the program imports from.
        program: Files that hold a function of the program itself, if that is what is trained.
    """

    spec: StudySpec
    needs: tuple[str, ...]
    search_path: tuple[Path, ...]
    program: Mapping[str, bytes]

    def __init__(
        self,
        tune: Mapping[str, Any],
        *,
        name: str = "study",
        seed: int = 0,
        track: Sequence[Any] = (),
        notify: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare a study in code.

        Args:
            tune: What stands below ``tune`` in a study file. ``training: {"python": train}`` may have the
                function itself; one that a notebook or script defines is kept as it is now.
            name: Its name.
            seed: Of the searcher and of the training.
            track: Where trials are shown while they train, as in a study file: ``["tensorboard"]``.
            notify: A command that is told of events.

        Raises:
            InvalidFileError: With every mistake.
        """
        tune, program = _without_function(tune)
        declared = {"name": name, "seed": seed, "tune": tune, "track": list(track), "notify": notify}
        with TemporaryDirectory() as folder:
            write(program, Path(folder))
            found = declare_study(
                declared, "Study", check_tune=tune_problems, search_path=[Path(folder)] if program else ()
            )
        self._become(learn(found, Path.cwd()).checked("Study"), None, (Path.cwd(),), program)

    @classmethod
    def from_yaml(
        cls, path: str | os.PathLike[str], overrides: Sequence[str] = (), *, stage: str | None = None
    ) -> Self:
        """Return a search of a study file; the stages around it are the program's.

        Args:
            path: The file.
            overrides: ``key=value`` each, as of ``parsl-rasda run --set``.
            stage: Which search, if the file has several.

        Raises:
            InvalidFileError: With every mistake of the file.
            InvalidSettingError: If it has no such search, or several and none was named.
        """
        study = cls.__new__(cls)
        folder = Path(path).parent
        whole = load_study(
            path, overrides, check_tune=tune_problems, check_study=lambda spec: learn(spec, folder).problems
        )
        study._become(learn(whole, folder).study, stage, search_path(Path(path)))
        return study

    @property
    def search(self) -> tuple[str, TuneStage]:
        """The name and the declaration of its search."""
        return next(iter(self.spec.tune_stages.items()))

    def _become(
        self,
        whole: StudySpec,
        name: str | None,
        paths: tuple[Path, ...],
        program: Mapping[str, bytes] | None = None,
    ) -> None:
        searches = whole.tune_stages
        if name is None and len(searches) == 1:
            (name,) = searches
        if name is None or name not in searches:
            raise InvalidSettingError("stage", name, f"a search of {whole.name}: {listing(searches)}")
        stage = searches[name]
        needs = (*stage.needs, *stage.for_each)
        for ours in set(needs).intersection(_OUR_ARGUMENTS):
            raise InvalidSettingError(
                f"stages.{name}.needs", ours, "another name: tune() has an argument of this one"
            )
        if stage.tune.searcher.warm_start:
            allowed = "nothing in a program, where no other search is known"
            key = f"stages.{name}.tune.searcher.warm_start"
            raise InvalidSettingError(key, stage.tune.searcher.warm_start, allowed)
        alone = stage.model_copy(update={"needs": {}, "for_each": {}, "site": None})
        object.__setattr__(self, "spec", whole.model_copy(update={"stages": {name: alone}}))
        object.__setattr__(self, "needs", needs)
        object.__setattr__(self, "search_path", paths)
        object.__setattr__(self, "program", program or {})


@dataclass(frozen=True, slots=True)
class Slots:
    """GPU slots behind an executor of a Parsl program; they belong to one search at a time.

    Attributes:
        executor: Label of the executor. It needs a worker for each trial that runs at a time.
        nodes: Nodes of one block.
        gpus_per_node: GPUs of each; with ``accelerator="cpu"``, ranks.
        accelerator: ``cuda``, ``rocm``, ``xpu``, ``cpu``, or ``none`` for purely logical slots.
        mpi_launcher: ``hydra``, ``openmpi``, ``srun``, or ``process`` for one process a trial.
        settings: Further keys of a site file, for example ``environment``.

    Raises:
        InvalidFileError: With every mistake.
    """

    executor: str
    nodes: int = 1
    gpus_per_node: int = 1
    accelerator: str = "cuda"
    mpi_launcher: str = "hydra"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what a site file could not say."""
        self.site()

    def site(self) -> ExecutorSite:
        """Return the site that they amount to."""
        declared = {
            "name": self.executor,
            "nodes": self.nodes,
            "gpus_per_node": self.gpus_per_node,
            "accelerator": self.accelerator,
            "mpi_launcher": self.mpi_launcher,
            "environment": _environment(),
            **self.settings,
        }
        return declare_executor(declared, f"Slots({self.executor!r})")


def tune(
    study: Study,
    *,
    slots: Slots | Sequence[Slots],
    directory: str | os.PathLike[str] | None = None,
    progress: ProgressReporter | bool = False,
    data_flow_kernel: DataFlowKernel | None = None,
    **inputs: Any,
) -> AppFuture:
    """Start a search in a Parsl program and return the future of its best trial.

    The result is a `StudyResult`, a mapping: ``trial``, ``metric``, ``epoch``, ``config``, ``checkpoint``,
    ``replicas``, ``site``; it also loads the model and shows all trials. If there is none, the future's
    exception is a `RasdaError`, with what caused it as its cause.

    Slots belong to one search at a time: a second one on the same executor waits until the first has
    ended. If the program ends Parsl, trials save and leave, and the same call goes on from there.

    Args:
        study: What to search.
        slots: Where: behind one executor, or several.
        directory: Run directory; one that holds a run of this study, with the same values as inputs,
            is taken up again, also with more trials. What lies behind a path is the program's care.
            Without it, a new one below ``runs/``.
        progress: True shows it: live in a terminal, one line in a notebook, else a line a decision on
            stderr; or who reports instead.
        data_flow_kernel: Parsl's kernel; by default the one that is loaded.
        inputs: Arguments for the training function, in ``trial.inputs``; futures and Files are
            waited for, as in any app. A mapping with the label of every executor gives each its own.

    Raises:
        InvalidSettingError: If Parsl has no executor of that label, or an input that the study needs
            is missing.
        RunDirectoryError: If no run directory can be made.
        PlacementImpossibleError: If a trial could never have the slots it needs.
        NoDataFlowKernelError: Parsl's, if none is loaded.
    """
    import parsl
    from parsl.dataflow.futures import AppFuture

    from parsl_rasda.workflow.embedded import Embedded
    from parsl_rasda.workflow.executor_queue import queue_of

    kernel = data_flow_kernel or parsl.dfk()
    slots = [slots] if isinstance(slots, Slots) else slots
    paths = (*study.search_path, *(path for path in _own_modules() if path not in study.search_path))
    sites = _sites(slots, kernel.executors)
    name, stage = study.search
    _check_inputs(study, inputs, directory)
    check_search_fit(stage.tune, sites, {})
    run = RunDirectory(_run_directory(study.spec.name, directory).resolve())
    if study.program:
        paths = (run.path / FOLDER, *paths)
    shown = GuardedProgress(_reporter(progress))
    place = queue_of(kernel).place(study.spec.name, [site.name for site in sites])
    search = Embedded(kernel, study.spec, paths, sites, run, place, shown, study.program)

    def begin(**arrived: Any) -> Future[Any]:
        return search.begin(arrived)

    begin.__name__ = f"rasda_{study.spec.name}"
    if _have_arrived(kernel, inputs):
        place.join()  # now: threads of Parsl's may begin two calls in either order
    options = {"executors": [_INTERNAL], "cache": False, "ignore_for_cache": None, "join": True}
    try:
        ended = kernel.submit(begin, app_args=(), app_kwargs=inputs, **options)
    except BaseException:
        place.leave()
        raise
    best = AppFuture(ended.task_record)

    def hand_over(done: Future[Any]) -> None:
        place.leave()  # where an input failed nobody else does
        if progress is True:
            shown.close()
        _hand_over(name, done, best, run.path)

    ended.add_done_callback(hand_over)
    return best


def _without_function(tune: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """Return what is declared with the name of a function in its place, and the files that hold it."""
    training = tune.get("training")
    if not isinstance(training, Mapping) or not callable(training.get("python")):
        return tune, {}
    function, files = training["python"], dict[str, bytes]()
    target = target_of(function)
    if target is None:
        target, files = kept(function)
    return {**tune, "training": {**training, "python": target}}, files


def _reporter(progress: ProgressReporter | bool | None) -> ProgressReporter:
    if progress is True:
        from parsl_rasda.display.choice import fitting_view

        return fitting_view()
    return progress or NoProgress()


def _hand_over(stage: str, ended: Future[Any], best: Future[Any], directory: Path) -> None:
    """Pass a task's result on, or its failure without what Parsl wraps around it."""
    error = ended.exception()
    if error is None:
        best.set_result(StudyResult(ended.result(), directory, stage))
    else:
        best.set_exception(_ours(stage, error))


def _ours(stage: str, error: BaseException) -> RasdaError:
    from parsl.dataflow.errors import DependencyError, JoinError

    if isinstance(error, JoinError) and isinstance(error.__cause__, RasdaError):
        return error.__cause__
    root = (isinstance(error, DependencyError) and error.__cause__) or error
    what = "an input could not be had: " if root is not error else ""
    failed = StageFailedError(stage, f"{what}{words_of(root)}")
    failed.__cause__ = error
    return failed


def _sites(slots: Sequence[Slots], executors: Mapping[str, Any]) -> list[ExecutorSite]:
    labels = [label for label in executors if label != _INTERNAL]
    named = [each.executor for each in slots]
    for executor in named:
        if executor not in labels:
            raise InvalidSettingError(
                "slots.executor", executor, f"a label of the loaded executors: {listing(labels)}"
            )
    if not named or len(named) > len(set(named)):
        raise InvalidSettingError("slots", listing(named), "at least one executor, each of them once")
    return [each.site() for each in slots]


def _check_inputs(study: Study, inputs: Mapping[str, Any], directory: object) -> None:
    missing = [need for need in study.needs if need not in inputs]
    if missing:
        found = f"no {listing(missing)}"
        raise InvalidSettingError("tune", found, f"what the study needs: {listing(study.needs)}")
    if not isinstance(directory, str | os.PathLike | None):
        allowed = "the path of the run directory; an input of the training needs another name"
        raise InvalidSettingError("directory", type(directory).__name__, allowed)


def _have_arrived(kernel: DataFlowKernel, inputs: Mapping[str, Any]) -> bool:
    futures = map(kernel.dependency_resolver.traverse_to_gather, inputs.values())
    return all(future.done() for future in itertools.chain.from_iterable(futures))


def _own_modules() -> list[Path]:
    """Return the folders that this program imports from, beside what is installed; its ranks do, too."""
    installed = (sys.prefix, sys.base_prefix)
    return [Path(path).resolve() for path in sys.path if not path.startswith(installed)]


def _environment() -> dict[str, str]:
    """Return what ranks need to find this package where it is not installed."""
    package = Path(__file__).resolve().parents[1]
    return {"PYTHONPATH": str(package)} if package in _own_modules() else {}


def _run_directory(study: str, directory: str | os.PathLike[str] | None) -> Path:
    """Return the directory that was asked for, or make one that nobody else has."""
    if directory is not None:
        return Path(directory)
    taken = 1
    while True:
        made = Path("runs") / (study if taken == 1 else f"{study}-{taken}")
        try:
            made.mkdir(parents=True)
        except FileExistsError:
            taken += 1
        except OSError as error:
            advice = "Choose another one (directory=...)."
            raise RunDirectoryError(str(made), f"cannot be made: {error.strerror}", advice) from error
        else:
            return made
