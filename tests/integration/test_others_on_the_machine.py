"""What others on the machine may see of a run, and what programs may write into it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from command_line import finish, start

SITE = """\
provider: {type: LocalProvider, worker_init: "export FROM_INIT='${REL_TOKEN}'"}
environment: {HF_TOKEN: "${REL_TOKEN}"}
work_dir: WORK
accelerator: none
mpi_launcher: process
gpus_per_node: 2
"""
STUDY = """\
name: watched
tune:
  metric: loss
  num_samples: 4
  scheduler: {max_t: 1}
  searcher: {kind: list, configs: [{k: good}, {k: colours}, {k: huge}, {k: silent}]}
  search_space: {k: {choice: [good, colours, huge, silent]}}
  training: {python: "mine:train"}
"""
MINE = r"""
import os

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def train(trial):
    for _ in trial.epochs():
        match trial.config["k"]:
            case "colours":
                colours = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \udcff"
                raise ValueError(f"no samples in [/scratch/run_7], see [bold]notes {colours}")
            case "huge":
                raise ValueError("z" * 20_000_000)
            case "silent":
                raise Silent()
        assert os.environ["HF_TOKEN"] == os.environ["FROM_INIT"] == "s3cr3t-token"
        trial.report(loss=0.5)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a study whose trials end in every ugly way, as others find it."""
    folder = tmp_path_factory.mktemp("watched")
    folder.chmod(0o755)
    (folder / "site.yaml").write_text(SITE.replace("WORK", str(folder / "work")))
    (folder / "study.yaml").write_text(STUDY)
    (folder / "mine.py").write_text(MINE)
    before = os.umask(0o022)
    try:
        words = ("run", "study.yaml", "--site", "site.yaml", "--dir", "run")
        code, _, error = finish(start(folder, *words, environment={"REL_TOKEN": "s3cr3t-token"}))
    finally:
        os.umask(before)
    assert code == 0, error
    assert "\x1b" not in error
    return folder


def test_nobody_else_may_read_anything_of_a_run(folder: Path) -> None:
    for top in ("run", "work"):
        everything = [folder / top, *(folder / top).rglob("*")]
        assert [p for p in everything if not p.is_symlink() and p.stat().st_mode & 0o077] == []


def test_no_secret_of_a_site_is_written_down(folder: Path) -> None:
    found = subprocess.run(
        ["grep", "-rl", "s3cr3t", "run", "work"], cwd=folder, capture_output=True, check=False
    )
    assert found.stdout == b""


def test_readers_do_without_the_secret_and_resume_names_it(folder: Path) -> None:
    assert finish(start(folder, "status", "run"))[0] == 0
    assert finish(start(folder, "report", "run"))[0] == 0
    code, _, error = finish(start(folder, "resume", "run"))
    assert code == 2
    assert "site.yaml:" in error
    assert "${REL_TOKEN}, which is not set in the environment" in error


def test_reasons_are_short_plain_and_whole_words(folder: Path) -> None:
    _, shown, _ = finish(start(folder, "status", "run"))
    assert "[/scratch/run_7], see [bold]notes red" in " ".join(shown.split())
    assert "SilentError" in shown or "Silent" in shown
    assert not {"\x1b", "\x07"} & set(shown)
    assert (folder / "run" / "journal.jsonl").stat().st_size < 100_000
    _, document, _ = finish(start(folder, "status", "run", "--json"))
    reasons = [trial["reason"] for trial in json.loads(document)["trial_list"]]
    assert max(map(len, reasons)) <= 2_000
