"""What every job script has around its site's `worker_init`, so that a script is read without it."""

from __future__ import annotations

_BEFORE, _SET, _AFTER = "trap 'parsl_rasda_init=", "set -e", "set +eu; parsl_rasda_ready=1"


def unguarded(script: str) -> str:
    """Return a job script without the guard around its `worker_init`, which must be there once, and whole."""
    lines = script.splitlines()
    (first,) = [place for place, line in enumerate(lines) if line.startswith(_BEFORE)]
    last = lines.index(_AFTER)
    assert lines[first + 1] == _SET
    assert first + 2 < last
    return "".join(f"{line}\n" for line in (*lines[:first], *lines[first + 2 : last], *lines[last + 1 :]))
