"""The console script: all commands, and how errors are reported.

An error that the user can act on is one message on stderr and an exit code; any other exception is a bug
and shows its traceback. Modules that take long to import are imported by the commands that need them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from parsl_rasda.cli.cancel import cancel
from parsl_rasda.cli.doctor import doctor
from parsl_rasda.cli.explain import explain
from parsl_rasda.cli.export import export
from parsl_rasda.cli.init import init
from parsl_rasda.cli.output import print_message
from parsl_rasda.cli.patient_output import occupy_standard_descriptors, patient_output
from parsl_rasda.cli.plan import plan
from parsl_rasda.cli.report import report
from parsl_rasda.cli.resume import resume
from parsl_rasda.cli.run import run
from parsl_rasda.cli.schema import schema
from parsl_rasda.cli.status import status
from parsl_rasda.cli.submit import submit
from parsl_rasda.cli.tell import tell
from parsl_rasda.cli.validate import validate
from parsl_rasda.cli.verify import verify
from parsl_rasda.cli.watch import watch
from parsl_rasda.errors import EXIT_CODES, RasdaError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_HELP = f"""Resource-adaptive hyperparameter optimisation (RASDA) as one stage of Parsl pipelines.

Exit codes: {"; ".join(f"{code} {words}" for code, words in EXIT_CODES.items())}.
"""
_LONG = {"run", "resume"}  # commands that hold allocations

app = typer.Typer(
    name="parsl-rasda",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    init,
    explain,
    validate,
    doctor,
    plan,
    run,
    resume,
    submit,
    tell,
    cancel,
    status,
    watch,
    report,
    export,
    verify,
    schema,
)
for command in _COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line and exit with its code."""
    occupy_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is no error
    with patient_output() if _LONG.intersection(sys.argv[1:2]) else contextlib.nullcontext():
        _run()


def _run() -> None:
    try:
        app()
    except RasdaError as error:
        print_message(f"parsl-rasda: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno in _FULL:  # the error of a write names no file
            advice = "What was written is kept: free some space, then resume."
            print_message(f"parsl-rasda: {error.strerror}. {advice}")
            sys.exit(RasdaError.exit_code)
        if error.filename is None:  # not about a file: a bug (typer handles broken pipes quietly)
            raise
        print_message(f"parsl-rasda: {error.filename}: {error.strerror}")
        sys.exit(RasdaError.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parsl-rasda {version('parsl_rasda')}")
        raise typer.Exit


@app.callback(help=_HELP)
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""
