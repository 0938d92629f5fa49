"""One tree of errors: each says what was asked, what was found, and what to change.

Constructors pass their arguments to ``super().__init__`` and build the text in ``__str__``,
so that every error survives pickling through Parsl and Globus Compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from parsl_rasda.plain_text import printable

_LONGEST_MESSAGE = 4_000  # characters; lists of names have no length of their own

EXIT_CODES = {
    0: "done",
    2: "the input is wrong",
    3: "there is no result, since no trial succeeded or a stage failed",
    4: "what is left of the sites cannot go on",
    5: "`verify` found something else than the run recorded, or could not train it again",
    130: "interrupted, and resumable",
    143: "the same, by `cancel`",
}

Loc: TypeAlias = tuple[str | int, ...]  # where something stands: keys and indices, from the top


class RasdaError(Exception):
    """The root: anything the user can act on. The command line prints it and exits with 2."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing wrong with what the user wrote: where, what was found, and what is allowed.

    Attributes:
        loc: Keys and indices down to it; empty for the whole.
        file: The file, or what stands in its place; empty if it is not known yet.
        line: The line in that file; 0 where there are none.
    """

    loc: Loc
    found: str
    allowed: str
    file: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """The place, as messages call it."""
        return ".".join(printable(str(part)) for part in self.loc) or "the file"

    def below(self, *loc: str | int) -> Diagnostic:
        """Return the diagnostic as seen from further up, where its whole is at ``loc``."""
        return replace(self, loc=(*loc, *self.loc))

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        text = f"{place}{self.key}: found {self.found}; allowed: {self.allowed}"
        return printable(text, _LONGEST_MESSAGE).replace("\n", "\\n")


class InvalidFileError(RasdaError):
    """A study or a site, in a file or in a program, has mistakes; all of them are listed."""

    def __init__(self, mistakes: Sequence[Diagnostic]) -> None:
        super().__init__(tuple(mistakes))
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(str(m) for m in self.mistakes)


class InvalidSettingError(RasdaError):
    """A value given in code or on the command line is not allowed."""

    def __init__(self, key: str, found: object, allowed: str) -> None:
        super().__init__(key, found, allowed)
        self.key, self.found, self.allowed = key, found, allowed

    def __str__(self) -> str:
        return f"{self.key}: found {self.found!r}; allowed: {self.allowed}"


class PlacementImpossibleError(RasdaError):
    """A trial needs more GPUs than any pilot will ever have; waiting cannot help."""

    def __init__(self, needed: int, largest: str, advice: str) -> None:
        super().__init__(needed, largest, advice)
        self.needed, self.largest, self.advice = needed, largest, advice

    def __str__(self) -> str:
        return (
            f"A trial needs {self.needed} GPUs at once, on one node or the same number on each of several, "
            f"but the largest pilot has {self.largest}. {self.advice} in the study, or give the site "
            "larger pilots (`nodes`, `gpus_per_node`)."
        )


class SiteUnavailableError(RasdaError):
    """No site or pilot could be had."""

    exit_code = 4

    def __init__(self, site: str, cause: str) -> None:
        super().__init__(site, cause)
        self.site, self.cause = site, cause

    def __str__(self) -> str:
        return f"Site {self.site!r} is not available: {self.cause}"


class RunDirectoryError(RasdaError):
    """A run directory cannot be used as asked."""

    def __init__(self, directory: str, found: str, advice: str) -> None:
        super().__init__(directory, found, advice)
        self.directory, self.found, self.advice = directory, found, advice

    def __str__(self) -> str:
        return f"{self.directory}: {self.found}. {self.advice}"


class RunCancelledError(RasdaError):
    """A run was cancelled while this controller waited for its turn."""

    exit_code = 143

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return f"{self.directory}: was cancelled while this controller waited for the one before it to end."


class JournalError(RasdaError):
    """A journal cannot be read or does not belong to this study."""

    def __init__(self, path: str, line: int, found: str) -> None:
        super().__init__(path, line, found)
        self.path, self.line, self.found = path, line, found

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found}"


class OtherDecisionError(JournalError):
    """The machine decides otherwise than a journal says.

    Attributes:
        words: What was decided then, and what would be now.
        section: How many versions had changed before.
    """

    def __init__(self, path: str, line: int, words: str, section: int) -> None:
        found = f"this version of parsl_rasda decides otherwise than the one that wrote the journal ({words})"
        super().__init__(path, line, found)
        self.args = (path, line, words, section)
        self.words, self.section = words, section


class StageFailedError(RasdaError):
    """A stage of a pipeline failed; what came before it stands."""

    exit_code = 3

    def __init__(self, stage: str, cause: str) -> None:
        super().__init__(stage, cause)
        self.stage, self.cause = stage, cause

    def __str__(self) -> str:
        return f"Stage {self.stage!r} failed: {self.cause}"


class CheckpointError(RasdaError):
    """A checkpoint cannot be read, or does not fit the model it is loaded into."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(path, found)
        self.path, self.found = path, found

    def __str__(self) -> str:
        return f"Checkpoint {self.path}: {self.found}"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is gone, or what is left of it cannot be read; an older one may do."""


class StorageError(RasdaError):
    """A file system is full, read-only, stale or broken: the site's fault, and a retry may help later."""

    exit_code = 4

    def __init__(self, path: str, words: str, left: str) -> None:
        super().__init__(path, words, left)
        self.path, self.words, self.left = path, words, left

    def __str__(self) -> str:
        return f"{self.path}: {self.words} ({self.left})"


class DataError(RasdaError):
    """A file of samples is missing, damaged, or not what its index says."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(path, found)
        self.path, self.found = path, found

    def __str__(self) -> str:
        return f"Data {self.path}: {self.found}"


class TrainingError(RasdaError):
    """A training function uses its `Trial` in a way that cannot work."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found, advice)
        self.found, self.advice = found, advice

    def __str__(self) -> str:
        return f"{self.found} {self.advice}"


class ControllerFailedError(RasdaError):
    """A thread of the controller has met a bug of ours; what was trained is kept."""

    exit_code = 1  # as of any bug

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind, self.message = kind, message

    def __str__(self) -> str:
        return (
            f"The controller has met a bug of its own ({self.kind}: {self.message}). "
            "What was trained is kept: `parsl-rasda resume` goes on from there. "
            "Please report the traceback above."
        )
