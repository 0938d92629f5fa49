"""``code: pinned``: a run keeps a copy of its study's code, made once, and runs nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.study import PythonStage, StudySpec, TuneStage
from parsl_rasda.study_code.code import OwnCode

_LARGEST = 1_000_000  # bytes of a file that is code, or lies beside it: data stay where they are


def search_path_in(run: RunDirectory, study: StudySpec, search_path: Sequence[str]) -> list[str]:
    """Return the folders where the functions of a run's study are: its copies, if its code is pinned.

    Args:
        run: The run directory.
        study: What is run.
        search_path: The folders that the study was started from.

    Raises:
        RunDirectoryError: If the copy cannot be made.
    """
    if study.code != "pinned":
        return list(search_path)
    if not run.code.exists():
        try:
            _copy(run.code, study, [Path(path) for path in search_path])
        except (OSError, shutil.Error) as error:
            found = f"the code of the study cannot be copied ({error})"
            raise RunDirectoryError(str(run.path), found, "Free space, or say `code: live`.") from error
    return [str(folder) for folder in sorted(run.code.iterdir())]


def _copy(target: Path, study: StudySpec, folders: Sequence[Path]) -> None:
    beside = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    files = {file for name in _functions(study) for file in OwnCode.of(name, folders).files}
    for number, folder in enumerate(dict.fromkeys(folder.resolve() for folder in folders)):
        here = [file.resolve().relative_to(folder) for file in files if file.resolve().is_relative_to(folder)]
        copy = beside / f"{number:02d}"
        if any(len(file.parts) == 1 for file in here):
            copy.mkdir(exist_ok=True)
            for file in folder.iterdir():
                if file.is_file() and not _is_left_out(file):
                    shutil.copy2(file, copy / file.name)
        for package in {file.parts[0] for file in here if len(file.parts) > 1}:
            shutil.copytree(folder / package, copy / package, ignore=_left_out)
    beside.rename(target)


def _functions(study: StudySpec) -> Iterator[str]:
    for stage in study.stages.values():
        if isinstance(stage, PythonStage):
            yield stage.python
        elif isinstance(stage, TuneStage) and stage.tune.training.python is not None:
            yield stage.tune.training.python


def _left_out(folder: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if _is_left_out(Path(folder, name))]


def _is_left_out(path: Path) -> bool:
    """Whether something is no code, and nothing small beside it: caches, hidden files, runs, data."""
    if path.name.startswith(".") or path.name == "__pycache__":
        return True
    return (path / "origin.json").exists() if path.is_dir() else path.stat().st_size > _LARGEST
