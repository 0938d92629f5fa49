"""Functions that no other process can import, because a notebook or a script itself defines them.

They are kept by value in the run directory, with a module that holds them: so ranks, `resume` and checks of a
study find them like any other function. What they refer to in the notebook goes with them, as it is when the
study is declared; modules are imported where they run.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parsl_rasda.atomic_files import replace_file
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plain_text import words_of

FOLDER = "functions"  # in a run directory
_MODULE, _PICKLE = "program_functions", "functions.pickle"
_TEXT = '''"""A function of the program that began this search, kept as it was then."""

from pathlib import Path

import cloudpickle

# For people, and to notice a change:
SOURCE = {source!r}

{name} = cloudpickle.loads((Path(__file__).parent / "{pickle}").read_bytes())
'''


def target_of(function: Callable[..., Any]) -> str | None:
    """Return ``module:function`` if other processes can import a function, else None."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in {None, "__main__"} or not name.isidentifier():
        return None
    return f"{module}:{name}" if getattr(sys.modules.get(module), name, None) is function else None


def kept(function: Callable[..., Any]) -> tuple[str, dict[str, bytes]]:
    """Return the target of a function that is kept by value, and the files that hold it.

    Raises:
        InvalidSettingError: If it cannot be kept so.
    """
    import cloudpickle

    name = getattr(function, "__name__", "")
    name = name if name.isidentifier() and name not in {"SOURCE", "Path", "cloudpickle"} else "train"
    try:
        value = cloudpickle.dumps(function)
    except Exception as error:
        allowed = f"a function that other processes can have, or package.module:function ({words_of(error)})"
        raise InvalidSettingError("training.python", name, allowed) from error
    text = _TEXT.format(source=_source(function), name=name, pickle=_PICKLE)
    return f"{_MODULE}:{name}", {_PICKLE: value, f"{_MODULE}.py": text.encode(errors="replace")}


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files that `kept` returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(folder / name, content)


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
