"""What a call gets of the files among its arguments."""

from __future__ import annotations

from pathlib import Path

import dill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.backends.parsl.staging import files_in
from parsl_rasda.errors import StageFailedError
from parsl_rasda.study.files import file_url, local_path
from parsl_rasda.workflow.dag import files_named_in
from parsl_rasda.workflow.tasks import call_command


def test_a_command_gets_paths_and_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    mesh = tmp_path / "mesh.txt"
    inputs = files_in(tmp_path / "files", {"mesh": f"file://{mesh}"})
    words, folder = ["sh", "-c", "cat {mesh} > result.json"], str(tmp_path / "call")
    with pytest.raises(StageFailedError, match=f"file://{mesh}: there is no such file"):
        call_command("show", words, {}, folder, files=["mesh"], inputs=inputs)
    mesh.write_text("[8]")
    assert call_command("show", words, {}, folder, files=["mesh"], inputs=inputs)["result"] == [8]


def test_two_files_of_one_name_have_folders_of_their_own_also_on_the_way_to_a_worker(tmp_path: Path) -> None:
    urls = {"coarse": "http://host/8/mesh.h5", "fine": "http://host/16/mesh.h5"}
    travelled = [dill.loads(dill.dumps(file.cleancopy())) for file in files_in(tmp_path, urls)]
    assert [file.folder for file in travelled] == [str(tmp_path / name) for name in urls]
    assert [file.url for file in travelled] == list(urls.values())


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v)))
def test_only_a_mapping_with_one_url_is_a_file(value: object) -> None:
    url = file_url(value)
    assert (url is not None) == (
        isinstance(value, dict) and list(value) == ["file"] and isinstance(value["file"], str)
    )
    assert url is None or local_path(url) is None or url.startswith("file:///")


def test_a_long_text_that_begins_with_a_slash_is_no_file() -> None:
    assert files_named_in(["/" + "a" * 5000]) == []
