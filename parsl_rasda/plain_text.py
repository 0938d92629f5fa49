"""Text from users and their programs, made safe to keep and to show: short, valid, without control.

An exception's text may be 20 MB, colour a terminal, raise when it is asked for, or hold what no UTF-8 file
and no XML can. Such text is cleaned and cut once, where it enters: `cleaned`. What is data and must stay
as it is (a configuration) is made `printable` where it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LONGEST = 2_000  # characters of a reason or a cause: what people read; log.txt has it all

LONGEST_TRACE = 20_000  # of a traceback

# What terminals obey, XML refuses and UTF-8 cannot hold: control characters but for blanks and line ends,
# surrogates, directions of writing that reorder a line, non-characters.
_UNFIT = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# An escape sequence of a terminal: colours and the like, titles and links.
_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|\x1b[ -/]*[0-~]"
)


def cleaned(text: str, longest: int = LONGEST) -> str:
    """Return text from outside as it is kept: without escape sequences, and cut in the middle if it is long.

    Cleaning twice changes nothing.
    """
    if len(text) > 4 * longest:
        text = _cut(text, 2 * longest)  # escapes of a text of 20 MB need not all be looked for
    return _cut(printable(_SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")), longest)


def printable(text: str, longest: int | None = None, *, escape: Callable[[str], str] | None = None) -> str:
    """Return text with every character that is unfit for terminals, XML or UTF-8 written as an escape.

    Args:
        text: Any text.
        longest: Cut to so many characters first.
        escape: How to write a character; as Python does by default.
    """
    if longest is not None:
        text = _cut(text, longest)
    write = escape or (lambda character: character.encode("unicode_escape").decode())
    return _UNFIT.sub(lambda found: write(found[0]), text)


def words_of(error: BaseException) -> str:
    """Return ``Type: text`` of an exception, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - the user's own code
        text = f"(its text cannot be had: {type(failure).__name__})"
    return cleaned(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    left_out = f" ... ({len(text)} characters) ... "
    kept = max(1, (longest - len(left_out)) // 2)
    return text[:kept] + left_out + text[-kept:]
