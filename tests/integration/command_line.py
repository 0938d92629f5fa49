"""The command line in a process of its own, as a user starts it in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = Path(sys.executable).parent / "parsl-rasda"
REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 120.0


def start(
    folder: Path,
    *words: str | Path,
    environment: Mapping[str, str] | None = None,
    as_group: bool = False,
) -> subprocess.Popen[str]:
    """Start ``parsl-rasda`` with these words in a folder, perhaps as a process group; its output is text."""
    return subprocess.Popen(
        [str(COMMAND), *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=as_group,
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(REPOSITORY)},
    )


def finish(process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> tuple[int, str, str]:
    """Wait for the end; return the exit code and what was printed on stdout and stderr."""
    out, err = process.communicate(timeout=deadline_s)
    return process.returncode, out, err
