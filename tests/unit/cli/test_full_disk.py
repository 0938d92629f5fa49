"""A full disk is reported like any error that the user can act on."""

from __future__ import annotations

import errno
import os

import pytest

from parsl_rasda.cli import main


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_message_and_no_traceback(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number))  # as `write` does, without the file

    monkeypatch.setattr(main, "app", write)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"parsl-rasda: {os.strerror(number)}. ")
