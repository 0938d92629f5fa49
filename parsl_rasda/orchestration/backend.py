"""The port between a study and the sites it runs on: every call of the driver, of stages and of `doctor`.

Nothing above `backends` knows which backend it has. `Capabilities` say in what they differ; where a stage's
folder lies, how its files get there and what an earlier controller has left are the backend's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from parsl_rasda.errors import ControllerFailedError, StageFailedError
from parsl_rasda.orchestration.events import ContinueJob, EndJob, Event, ReleasePilot, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.files import local_path
from parsl_rasda.types import Capabilities, JobId, Placement, SiteName


@dataclass(frozen=True, slots=True)
class BackendFailed:
    """A backend has met a bug of its own: nobody knows what it still does. The driver ends the run."""

    error: Exception


PostEvent: TypeAlias = Callable[[Event | BackendFailed], None]


def event_of(found: Event | BackendFailed) -> Event:
    """Return the event that a backend posted.

    Raises:
        ControllerFailedError: If it has met a bug.
    """
    if isinstance(found, BackendFailed):
        raise ControllerFailedError(type(found.error).__name__, str(found.error)) from found.error
    return found


class StageFunction(Protocol):
    """What runs one call of a stage on its site: a function of a module, which is imported there."""

    __qualname__: str

    def __call__(
        self,
        stage: str,
        target: Any,  # as the function reads it
        arguments: Mapping[str, Any],
        directory: str,
        search_path: Sequence[str],
        /,
        *,
        files: Sequence[str] = (),
        inputs: Sequence[Any] = (),  # files of Parsl's, which is untyped
    ) -> Any:
        """Return the result of the call, which is plain JSON.

        Args:
            stage: Name of the stage.
            target: What to call.
            arguments: By name.
            directory: The call's own folder on the site.
            search_path: Folders to import from, before Python's own.
            files: The arguments that are staged files.
            inputs: These files, each with a `filepath`.
        """
        ...


@dataclass(frozen=True, slots=True)
class StageTask:
    """One call of a stage, for a backend to run beside the jobs.

    Attributes:
        site: Where it runs.
        stage: Name of the stage.
        call: Name of the call; its folder lies below that of the stage.
        function: Runs it there.
        target: What the function calls, as it reads it: ``module:function``, or the arguments of a command.
        arguments: Plain JSON, by name.
        files: URLs of the arguments that are files.
        search_path: Folders of the study's own modules.
        key: Digest of all that the result depends on: a later controller recognises the call by it.
    """

    site: SiteName
    stage: str
    call: str
    function: StageFunction
    target: str | tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    search_path: tuple[str, ...] = ()
    key: str = ""

    @property
    def folder(self) -> str:
        """The folder of the call, below that of all stages."""
        return f"{self.stage}/{self.call}"

    def with_paths(self) -> dict[str, Any]:
        """Return the arguments with the paths of the files, for a backend that stages none.

        Raises:
            StageFailedError: If a file has no path there.
        """
        paths = {argument: local_path(url) for argument, url in self.files.items()}
        for argument, path in paths.items():
            if path is None:
                found = f"no files are staged to site {self.site}; name one that is there (file:///...)"
                raise StageFailedError(self.stage, f"{argument}: {self.files[argument]}: {found}")
        return {**self.arguments, **paths}


class OpenJob(NamedTuple):
    """A job that ran when its controller went, and the epochs that it is known to have finished."""

    job: JobId
    site: SiteName
    epoch: int


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a backend gets beside its site.

    Attributes:
        directory: A folder of its own, in the run directory: two backends never share one.
        run_directory: The run directory; without it, `directory` is all there is.
        study: Name of the study, for others who would use the same pilot.
        narrowest: Slots of the narrowest job, which bounds how many run at a time.
        stages_at_once: Calls of stages that run beside the jobs at a time.
        forks_ranks: Jobs will train Python functions, whose ranks are forked from a process with torch.
        python_path: Folders of user modules, which a distant site must have, too.
    """

    directory: Path
    run_directory: Path | None = None
    study: str = ""
    narrowest: int = 1
    stages_at_once: int = 2
    forks_ranks: bool = False
    python_path: tuple[Path, ...] = ()

    @property
    def stages(self) -> Path:
        """The folder of the stages, where the site sees the run directory."""
        return (self.run_directory or self.directory) / "stages"

    @property
    def files(self) -> Path:
        """The folder of the files that are staged for them."""
        return (self.run_directory or self.directory) / "files"


class Backend(Protocol):
    """Where jobs and stages really run. Methods return at once; what happens comes back as events.

    `post` may be called from any thread and only enqueues. For every `start_job` exactly one
    `JobEnded` is posted, after the job's processes are gone. When a pilot ends, the `JobEnded` of
    each of its jobs is posted before its `PilotEnded`; before those, if nobody asked for its end, a
    `PilotLost`, so that nothing is started there meanwhile. The executable definition is
    `parsl_rasda.testing.BackendContract`.

    Attributes:
        capabilities: In what it differs from others.
    """

    capabilities: Capabilities

    def open(self, post: PostEvent) -> None:
        """Begin: events go to ``post`` from now on."""
        ...

    def close(self) -> None:
        """End every process and pilot that is left; returns when they are gone. `hold` keeps pilots."""
        ...

    def hold(self) -> AbstractContextManager[None]:
        """Open for stages, and keep pilots from one `open` to the next while the block lasts."""
        ...

    def begin_search(self, suffix: str) -> None:
        """Keep the next search apart from earlier ones, whose trials have the same names.

        Args:
            suffix: Of the folder of its trials; none for the only search of a run.
        """
        ...

    def recover(self, jobs: Iterable[OpenJob]) -> list[Event]:
        """Return how jobs of an earlier controller have ended, after ending those that still run.

        Nothing if this machine sees the disk of the site: then it reads that itself.
        """
        ...

    def request_pilot(self, request: RequestPilot) -> None:
        """Ask for an allocation."""
        ...

    def release_pilot(self, release: ReleasePilot) -> None:
        """Give an allocation back."""
        ...

    def start_job(self, order: JobSpec, placement: Placement) -> None:
        """Start a job on slots that the ledger holds for it."""
        ...

    def continue_job(self, answer: ContinueJob) -> None:
        """Answer an interactive job that waits at an epoch boundary."""
        ...

    def end_job(self, end: EndJob) -> None:
        """Let a job leave: at once if it waits at a boundary, else at its next step."""
        ...

    def directory_of(self, order: JobSpec) -> str:
        """Return where the files of a job that was started lie on its site."""
        ...

    def submit_stage(self, task: StageTask) -> Future[Any]:
        """Run a call of a stage on a pilot, beside the jobs there; it holds no slots.

        Asks for a pilot if there is none. The future's exception is a `StageFailedError` if the call
        failed, a `SiteUnavailableError` if the site was lost.
        """
        ...
