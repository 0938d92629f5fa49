"""What `run` and `resume` share: show a run, then report how it ended."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Protocol

import typer
from rich.console import Console
from rich.text import Text

from parsl_rasda.cli.output import print_message
from parsl_rasda.display.live import LiveView
from parsl_rasda.display.plain import PlainView
from parsl_rasda.errors import SiteUnavailableError, StageFailedError
from parsl_rasda.orchestration.progress import ProgressReporter
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.plain_text import printable
from parsl_rasda.private_files import private_files
from parsl_rasda.reporting.tables import console_of
from parsl_rasda.types import StudyState

EXIT_CODES = {
    StudyState.DONE: 0,
    StudyState.FAILED: 3,
    StudyState.NO_SITE: 4,
    StudyState.INTERRUPTED: 130,
    StudyState.RUNNING: 130,
}
_CANCELLED = 143  # `cancel` has ended it: scripts that go on after 130 do not
_LARGEST_LOG = 10_000_000  # bytes
_SDK = ("globus_compute_sdk", "globus_sdk", "pika")


class RunEnd(Protocol):
    """How a run ended."""

    @property
    def state(self) -> StudyState:
        """How it ended."""
        ...


def run_and_report(directory: Path, start: Callable[[ProgressReporter], RunEnd], *, as_json: bool) -> None:
    """Run a study under a view, print its outcome, and exit with its code.

    Raises:
        RasdaError: If the run was refused: nothing is printed then.
    """
    with private_files(directory):
        _run_and_report(directory, start, as_json=as_json)


def _run_and_report(directory: Path, start: Callable[[ProgressReporter], RunEnd], *, as_json: bool) -> None:
    try:
        with _view(directory) as view:
            code = EXIT_CODES[start(view).state]
    except KeyboardInterrupt:
        code = EXIT_CODES[StudyState.INTERRUPTED]
    except (StageFailedError, SiteUnavailableError) as error:
        print_message(f"parsl-rasda: {error}")
        code = error.exit_code
    if code == EXIT_CODES[StudyState.INTERRUPTED] and RunDirectory(directory).is_told_to_end:
        code = _CANCELLED
    if RunDirectory(directory).study_file.exists():  # else it was ended before it began
        # Not before the search, which would begin a third of a second later.
        from parsl_rasda.cli.outcome import print_outcome

        print_outcome(directory, as_json=as_json)
    raise typer.Exit(code)


@contextmanager
def _view(directory: Path) -> Iterator[ProgressReporter]:
    """Give a view on stderr: live in a terminal, else a line a decision."""
    console = console_of(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal
    view: ProgressReporter = (
        LiveView(console, RunDirectory(directory).sites) if live else PlainView(console.file)
    )
    with _shown_warnings(console), _sdk_log(directory / "globus.log"):
        try:
            yield view
        finally:
            view.close()


@contextmanager
def _shown_warnings(console: Console) -> Iterator[None]:
    """Show our own warnings above the live view; those of Parsl are in its own log."""
    handler = _Handler(console)
    logger = logging.getLogger("parsl_rasda")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _sdk_log(file: Path) -> Iterator[None]:
    """Keep the warnings of Globus Compute's SDK in a file: they are about connections that we restore.

    Without a handler of its own, Python would print them into the view, with tracebacks. Differences between
    versions are reported by the handshake with the site, which says what to do.
    """
    handler = RotatingFileHandler(file, maxBytes=_LARGEST_LOG, backupCount=1, delay=True, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _SDK]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"\s*Environment differences", UserWarning, "globus_compute_sdk"
            )
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # whoever warns, any thread, must not suffer for the display
            self._console.print(Text(printable(self.format(record))), soft_wrap=True)
