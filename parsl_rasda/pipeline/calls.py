"""What one call of a stage does, on the worker: import, call, check the result.

Results are plain JSON, so that they can be kept, compared and sent anywhere; data goes to files,
whose paths are returned.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.errors import StageFailedError


def call_python(
    stage: str, target: str, arguments: Mapping[str, Any], directory: str, search_path: Sequence[str]
) -> dict[str, Any]:
    """Call ``package.module:function`` and return ``{"result": ..., "seconds": ...}``.

    Args:
        stage: Its name, for errors.
        target: The function.
        arguments: By name.
        directory: The call's own folder; passed on if the function has a parameter `directory`.
        search_path: Folders to import from, before Python's own.

    Raises:
        StageFailedError: If the function raises, or returns what JSON cannot hold.
    """
    sys.path[:0] = [path for path in search_path if path not in sys.path]
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        given = dict(arguments)
        if "directory" in inspect.signature(function).parameters and "directory" not in given:
            given["directory"] = str(folder)
        result = function(**given)
    except Exception as error:
        raise StageFailedError(stage, _cause(error)) from error
    return {"result": _plain(stage, result), "seconds": time.perf_counter() - begin}


def call_command(
    stage: str, words: Sequence[str], arguments: Mapping[str, Any], directory: str
) -> dict[str, Any]:
    """Run a program in its own folder; its result is ``result.json`` there, else the folder.

    Raises:
        StageFailedError: If it ends with another code than 0, or `result.json` is not JSON.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
    argv = [word.format(**{"directory": str(folder), **values}) for word in words]
    begin = time.perf_counter()
    log = folder / "log.txt"
    with log.open("wb") as output:
        try:
            done = subprocess.run(argv, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False)
        except OSError as error:
            raise StageFailedError(stage, f"{argv[0]}: {error.strerror}") from error
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise StageFailedError(stage, f"{argv[0]} ended with {done.returncode}: {' '.join(last)} (see {log})")
    return {"result": _result_of(stage, folder), "seconds": time.perf_counter() - begin}


def fingerprint(target: str, search_path: Sequence[str]) -> str:
    """Return a digest of the code behind a function: its module's source, without importing it."""
    from parsl_rasda.study.targets import source_of

    source = source_of(target, tuple(Path(p) for p in search_path))
    return hashlib.blake2b(source.encode(), digest_size=16).hexdigest()


def _result_of(stage: str, folder: Path) -> Any:
    file = folder / "result.json"
    if not file.exists():
        return str(folder)
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise StageFailedError(stage, f"{file} is not JSON: {error}") from error


def _plain(stage: str, result: Any) -> Any:
    try:
        return json.loads(json.dumps(result, default=_path))
    except (TypeError, ValueError) as error:
        kind = type(result).__name__
        advice = "return numbers, texts, lists and mappings; write data to files in `directory`"
        raise StageFailedError(
            stage, f"it returned a {kind} that JSON cannot hold ({error}): {advice}"
        ) from error


def _path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _cause(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
