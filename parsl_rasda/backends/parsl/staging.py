"""Files among the arguments of a stage, staged by Parsl in the task that needs them.

Parsl's providers put every file of an executor into one folder, where two of the same name would be
one; ours give each a folder of its own. What HTTP answers with an error, Parsl would take for the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parsl.data_provider import ftp, http
from parsl.data_provider.file_noop import NoOpFileStaging
from parsl.data_provider.files import File
from parsl.data_provider.staging import Staging

_ANSWER_S = 60.0


class FileInFolder(File):  # type: ignore[misc]  # Parsl is untyped
    """A file, and the folder that it is staged into."""

    def __init__(self, url: str, folder: str) -> None:
        """Name both."""
        super().__init__(url)
        self.folder = folder

    def cleancopy(self) -> FileInFolder:
        """Return it as it was before it was staged."""
        return FileInFolder(self.url, self.folder)


class _Answered:
    """A task that begins only if a server has what it is asked for."""

    def __init__(self, url: str, task: Callable[..., Any]) -> None:
        self.url, self.task = url, task

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        import requests

        with requests.get(self.url, stream=True, timeout=_ANSWER_S) as answer:
            answer.raise_for_status()
        return self.task(*arguments, **named)


class _HTTPStaging(http.HTTPInTaskStaging):  # type: ignore[misc]  # Parsl is untyped
    def stage_in(self, dm: Any, executor: str, file: FileInFolder, parent_fut: Any) -> None:
        file.local_path = f"{file.folder}/{file.filename}"

    def replace_task(self, dm: Any, executor: str, file: FileInFolder, f: Any) -> _Answered:
        return _Answered(file.url, http.in_task_transfer_wrapper(f, file, file.folder))


class _FTPStaging(ftp.FTPInTaskStaging):  # type: ignore[misc]  # Parsl is untyped
    def stage_in(self, dm: Any, executor: str, file: FileInFolder, parent_fut: Any) -> None:
        file.local_path = f"{file.folder}/{file.filename}"

    def replace_task(self, dm: Any, executor: str, file: FileInFolder, f: Any) -> Any:
        return ftp.in_task_transfer_wrapper(f, file, file.folder)


def providers() -> list[Staging]:
    """Return what an executor of ours stages: file, http and https, ftp."""
    return [NoOpFileStaging(), _HTTPStaging(), _FTPStaging()]


def files_in(folder: Path, urls: Mapping[str, str]) -> list[FileInFolder]:
    """Return files by argument, each to be staged into a folder of its own in ``folder``."""
    return [FileInFolder(url, str(folder / argument)) for argument, url in urls.items()]
