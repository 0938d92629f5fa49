"""What of an exception is the fault of a file system, and is said of it."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from parsl_rasda.errors import StorageError
from parsl_rasda.storage import space_left, storage_error, storing, unwritable

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def full(code: int = errno.ENOSPC) -> OSError:
    return OSError(code, os.strerror(code))


def raised_from(cause: Exception) -> ValueError:
    try:
        raise ValueError("cannot save") from cause  # noqa: TRY301 - as users do
    except ValueError as error:
        return error


def raised_while(first: Exception) -> ValueError:
    try:
        try:
            raise first
        except type(first):
            raise ValueError("cannot clean up")  # noqa: B904 - as users write it
    except ValueError as error:
        return error


@pytest.mark.parametrize("code", CODES)
def test_the_path_the_words_and_the_space_left_are_named(tmp_path: Path, code: int) -> None:
    with pytest.raises(StorageError) as caught, storing(tmp_path / "epochs.jsonl"):
        raise full(code)
    assert str(caught.value).startswith(f"{tmp_path}/epochs.jsonl: {os.strerror(code)} (")
    assert str(caught.value).endswith(" left)")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storing(tmp_path):
        (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(
    "error",
    [
        full(),
        OSError(errno.EROFS, "Read-only file system", "/data/out.npy"),
        raised_from(full()),
        raised_while(full(errno.EDQUOT)),
        RuntimeError("unable to write to file </torch_12>: No space left on device (28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file"),
        OSError("1000000 requested and 4096 written"),
        OSError("can't write data (errno = 122, error message = 'Disk quota exceeded')"),
    ],
)
def test_an_error_of_a_file_system_is_found_wherever_it_came_from(tmp_path: Path, error: Exception) -> None:
    found = storage_error(error, tmp_path)
    assert found is not None
    assert found.path == str(getattr(error, "filename", None) or tmp_path)


def silenced() -> Exception:
    try:
        raise ValueError("a mistake") from None  # noqa: TRY301 - as users do
    except ValueError as error:
        return error


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


@pytest.mark.parametrize("make", [silenced, lambda: ValueError("left"), FileNotFoundError, SpeechlessError])
def test_the_users_own_mistakes_are_not_taken_for_it(tmp_path: Path, make: Callable[[], Exception]) -> None:
    assert storage_error(make(), tmp_path) is None


def test_a_circle_of_exceptions_ends(tmp_path: Path) -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    assert storage_error(one, tmp_path) is None


def test_the_space_left_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert space_left(tmp_path / "not" / "yet").partition(" of ")[2]


def test_a_folder_that_takes_files_is_writable_and_stays_as_it_is(tmp_path: Path) -> None:
    assert unwritable(tmp_path) is None
    assert unwritable(tmp_path / "missing") is None
    assert not list(tmp_path.iterdir())
