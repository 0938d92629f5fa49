"""What one call of a stage does, on the worker: import, call, check the result.

Results are plain JSON, so that they can be kept, compared and sent anywhere; data goes to files,
whose paths are returned.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl_rasda.agent.strays import ending_strays
from parsl_rasda.errors import StageFailedError
from parsl_rasda.plain_text import words_of
from parsl_rasda.user_modules import add_user_folders, import_user_module, python_path


def call_python(
    stage: str,
    target: str,
    arguments: Mapping[str, Any],
    directory: str,
    search_path: Sequence[str],
    *,
    files: Sequence[str] = (),
    inputs: Sequence[Any] = (),
) -> dict[str, Any]:
    """Call ``package.module:function`` and return ``{"result": ..., "seconds": ...}``.

    Args:
        stage: Its name, for errors.
        target: The function.
        arguments: By name.
        directory: The call's own folder; passed on if the function has a parameter `directory`.
        search_path: Folders to import from, before Python's own.
        files: The arguments that are files.
        inputs: Those files, staged by Parsl.

    Raises:
        StageFailedError: If a file is not there, or the function raises, or returns what JSON cannot hold.
    """
    add_user_folders(search_path)
    _forget_edited(search_path)
    staged = _paths_of(stage, files, inputs)
    folder = _emptied(directory)
    begin = time.perf_counter()
    try:
        module, _, name = target.partition(":")
        function = getattr(import_user_module(module), name)
        _remember(search_path)
        given = {**arguments, **staged}
        if "directory" in inspect.signature(function).parameters and "directory" not in given:
            given["directory"] = str(folder)
        with ending_strays():
            result = function(**given)
        _remember(search_path)
    except Exception as error:
        raise StageFailedError(stage, _cause(error)) from error
    return {"result": _plain(stage, result), "seconds": time.perf_counter() - begin}


def call_command(
    stage: str,
    words: Sequence[str],
    arguments: Mapping[str, Any],
    directory: str,
    search_path: Sequence[str] = (),
    *,
    files: Sequence[str] = (),
    inputs: Sequence[Any] = (),
) -> dict[str, Any]:
    """Run a program in its own folder; its result is ``result.json`` there, else the folder.

    Raises:
        StageFailedError: If a file is not there, it ends with another code than 0, or `result.json` is
            not JSON.
    """
    given = {**arguments, **_paths_of(stage, files, inputs)}
    folder = _emptied(directory)
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
    argv = [word.format(**{"directory": str(folder), **values}) for word in words]
    begin = time.perf_counter()
    log = folder / "log.txt"
    environment = {**os.environ, "PYTHONPATH": python_path([*search_path, str(Path.cwd())], os.environ)}
    with log.open("wb") as output, ending_strays():
        try:
            done = subprocess.run(
                argv, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            raise StageFailedError(stage, f"{argv[0]}: {error.strerror}") from error
    if done.returncode:
        last = _last_bytes(log).decode(errors="replace").strip().splitlines()[-1:]
        raise StageFailedError(stage, f"{argv[0]} ended with {done.returncode}: {' '.join(last)} (see {log})")
    return {"result": _result_of(stage, folder), "seconds": time.perf_counter() - begin}


def _paths_of(stage: str, files: Sequence[str], inputs: Sequence[Any]) -> dict[str, str]:
    """Return where the files among the arguments lie, which are Parsl's."""
    for file in inputs:
        if not Path(file.filepath).exists():
            raise StageFailedError(stage, f"{file.url}: there is no such file")
    return {argument: str(file.filepath) for argument, file in zip(files, inputs, strict=True)}


def _emptied(directory: str) -> Path:
    """Return the folder of a call, without what an earlier attempt has left there."""
    folder = Path(directory)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


_imported: dict[str, int] = {}  # own modules of studies and when they were changed, in this worker


def _forget_edited(search_path: Sequence[str]) -> None:
    """Let the study's own modules be imported again if one of them has changed: workers live long."""
    now = _own_modules(search_path)
    if any(now.get(name, 0) != then for name, then in _imported.items() if name in sys.modules):
        for name in now.keys() | _imported.keys():
            sys.modules.pop(name, None)
        _imported.clear()
        importlib.invalidate_caches()


def _remember(search_path: Sequence[str]) -> None:
    for name, changed in _own_modules(search_path).items():
        _imported.setdefault(name, changed)


def _own_modules(search_path: Sequence[str]) -> dict[str, int]:
    """Return the study's own modules that are imported, and when their files were changed [ns]."""
    files = {name: getattr(module, "__file__", None) for name, module in tuple(sys.modules.items())}
    own = {name: Path(file) for name, file in files.items() if file and _is_own(name, file, search_path)}
    return {name: file.stat().st_mtime_ns for name, file in own.items() if file.exists()}


def _is_own(name: str, file: str, search_path: Sequence[str]) -> bool:
    return (
        name.partition(".")[0] not in {"parsl_rasda", "__main__", "__mp_main__"}
        and "site-packages" not in file
        and any(Path(file).is_relative_to(path) for path in search_path)
    )


def _result_of(stage: str, folder: Path) -> Any:
    file = folder / "result.json"
    if not file.exists():
        return str(folder)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageFailedError(stage, f"{file} is not JSON: {error}") from error


def _last_bytes(file: Path, most: int = 4096) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, 2) - most))
        return opened.read()


def _plain(stage: str, result: Any) -> Any:
    try:
        return json.loads(json.dumps(result, default=_path))
    except (TypeError, ValueError) as error:
        kind = type(result).__name__
        advice = "return numbers, strings, lists and mappings; write data to files in `directory`"
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
    return f"{words_of(error)}{where}"
