"""The controller dies after a record of its journal, and `resume` ends as if it had not: real kills.

CI tries one; `make chaos` tries every record (RASDA_CRASH_POINTS=1:1000, first and last).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_tools import eventually
from command_line import COMMAND, DEADLINE_S, REPOSITORY, finish
from studies import SITE, lines_of, processes_of, verdict, wait_until_none_is_left

pytestmark = [pytest.mark.parsl, pytest.mark.slow]

STUDY = """
name: crashes
seed: 5
with: {epoch_s: 0.02, seed: 5}
tune:
  metric: val_loss
  num_samples: 4
  scheduler: {variant: synchronous, max_t: 4, max_workers: 4}
  search_space:
    lr: {float: [1.0e-4, 1.0e-1], log: true}
  training:
    python: workflows.emulated.train:train
"""
DYING = Path(__file__).parent / "dying_controller.py"
POINTS = os.environ.get("RASDA_CRASH_POINTS", "14:14")
FIRST, LAST = map(int, POINTS.split(":"))
IS_ALL = LAST > FIRST
ROUNDS = 20 if IS_ALL else 1
SILENCE_S = 150.0  # after which a controller of another host is dead


class Crashes:
    """A folder of runs of one study, and what all of them must come to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        (folder / "study.yaml").write_text(STUDY)
        (folder / "logical.yaml").write_text(SITE)
        (folder / "watchful.yaml").write_text(f"{SITE}heartbeat_threshold: 10\n")
        self.undisturbed: dict[str, Any] = {}

    def start(self, *words: str, after: int | None = None, torn: bool = False, prefix: tuple[str, ...] = ()):
        """Start the command line; ``after``: it dies after so many records, or in the middle of the next."""
        dying = (
            (str(DYING), str(after), *(("--torn",) if torn else ())) if after is not None else (str(COMMAND),)
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(self.temporary)}
        return subprocess.Popen(
            [*prefix, sys.executable, *dying, *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, name: str, site: str = "logical", **named: Any) -> subprocess.Popen[str]:
        words = ("run", "study.yaml", "--site", f"{site}.yaml", "--dir", name, "--json")
        return self.start(*words, **named)

    def resume(self, name: str, **named: Any) -> subprocess.Popen[str]:
        return self.start("resume", name, "--json", **named)

    def dies(self, process: subprocess.Popen[str]) -> bool:
        """Return whether a controller was killed; else it has come to its end before."""
        code, out, err = finish(process)
        assert code in {0, -signal.SIGKILL}, err
        if code == 0:
            self.check(out)
        return code != 0

    def ends_well(self, name: str, process: subprocess.Popen[str]) -> None:
        code, out, err = finish(process)
        assert code == 0, err
        self.check(out)
        self.nothing_is_left(name)

    def check(self, out: str) -> None:
        summary = json.loads(out)
        assert verdict(summary) == self.undisturbed
        assert all(t["losses"] == 0 for t in summary["trial_list"]), "a controller's death costs no retry"

    def nothing_is_left(self, name: str) -> None:
        wait_until_none_is_left(self.folder)
        assert not list(self.temporary.iterdir())
        left = [
            p for p in (self.folder / name).rglob("*") if p.suffix == ".tmp" or p.name == "controller.json"
        ]
        assert not left


@pytest.fixture(scope="module")
def crashes() -> Iterator[Crashes]:
    folder = Path(tempfile.mkdtemp(prefix="rasda-"))  # short: it holds sockets, too
    try:
        found = Crashes(folder)
        code, out, err = finish(found.run("undisturbed"))
        assert code == 0, err
        found.undisturbed = verdict(json.loads(out))
        found.nothing_is_left("undisturbed")
        yield found
    finally:
        shutil.rmtree(folder)


@pytest.mark.timeout(3600 if IS_ALL else 300)
def test_a_study_ends_as_undisturbed_wherever_its_controller_dies_and_the_next_ones_too(
    crashes: Crashes,
) -> None:
    """After each record; then a resume before it has written, one in its first record, one after that."""
    for point in range(FIRST, LAST + 1):
        name = f"after-{point}"
        if not crashes.dies(crashes.run(name, after=point)):
            assert point > 20, "there are more records than that"
            break
        journal = crashes.folder / name / "journal.jsonl"
        assert lines_of(journal) == point + 1
        for more, torn in ((0, False), (0, True), (1, False)):
            assert crashes.dies(crashes.resume(name, after=point + more, torn=torn)) or point > 20
        crashes.ends_well(name, crashes.resume(name))
        shutil.rmtree(crashes.folder / name)


@pytest.mark.timeout(3600 if IS_ALL else 300)
def test_of_two_resumes_at_once_one_is_refused_in_words_and_the_other_ends_well(crashes: Crashes) -> None:
    for number in range(ROUNDS):
        name = f"twice-{number}"
        assert crashes.dies(crashes.run(name, after=3 + number))
        both = [crashes.resume(name) for _ in range(2)]
        ends = sorted((finish(process) for process in both), key=lambda end: end[0])
        assert [end[0] for end in ends] == [0, 2], ends
        assert "is being run by" in ends[1][2] or "taken over" in ends[1][2]
        assert "Traceback" not in ends[1][2]
        crashes.check(ends[0][1])
        crashes.nothing_is_left(name)


def wait_for(process: subprocess.Popen[str], journal: Path, records: int) -> None:
    eventually(lambda: (journal.exists() and lines_of(journal) > records) or process.poll() is not None)
    assert process.poll() is None, process.communicate()


def test_a_controller_that_stands_still_is_not_taken_for_dead(crashes: Crashes) -> None:
    first = crashes.run("still")
    wait_for(first, crashes.folder / "still" / "journal.jsonl", 5)
    first.send_signal(signal.SIGSTOP)
    try:
        code, _, err = finish(crashes.resume("still"))
        assert code == 2
        assert "is being run by" in err
    finally:
        first.send_signal(signal.SIGCONT)
    crashes.ends_well("still", first)


@pytest.mark.timeout(600)
def test_a_controller_on_another_host_is_let_live_and_succeeded_once_it_has_been_silent(
    crashes: Crashes,
) -> None:
    elsewhere = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
    if subprocess.run((*elsewhere, "true"), check=False, capture_output=True).returncode:
        pytest.skip("another host name needs root")
    first = crashes.run("foreign", "watchful", prefix=elsewhere)  # its pilot misses it soon
    wait_for(first, crashes.folder / "foreign" / "journal.jsonl", 5)
    first.send_signal(signal.SIGSTOP)
    code, _, err = finish(crashes.resume("foreign"))
    assert code == 2
    assert "on elsewhere" in err
    first.kill()
    first.communicate()
    eventually(lambda: not processes_of(crashes.folder), deadline_s=DEADLINE_S)
    if not IS_ALL:
        return
    give_up, code = time.monotonic() + SILENCE_S, 2
    while code == 2 and time.monotonic() < give_up:
        code, out, err = finish(crashes.resume("foreign"))
    assert code == 0, err
    crashes.check(out)
    crashes.nothing_is_left("foreign")
