"""A run's output neither blocks nor raises, whoever reads it, or does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from parsl_rasda.cli.patient_output import PatientOutput


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_what_is_written_arrives_in_order(pipe: tuple[int, int]) -> None:
    output = PatientOutput(pipe[1], most_bytes=None)
    text = b"".join(b"%06d\n" % i for i in range(40_000))  # more than a pipe holds
    output.write(text[:100_000])
    output.write(text[100_000:])
    read = b""
    while len(read) < len(text):
        read += os.read(pipe[0], 65536)
    output.drain(5.0)
    assert read == text


def test_a_pipe_that_nobody_reads_and_one_that_is_closed_hold_nobody_up(pipe: tuple[int, int]) -> None:
    output = PatientOutput(pipe[1], most_bytes=100_000)
    begin = time.monotonic()
    for _ in range(1000):
        output.write(b"x" * 1000)
    output.drain(0.2)
    assert time.monotonic() - begin < 5.0
    os.close(pipe[0])
    output.write(b"and more")
    output.drain(5.0)  # all of it is dropped
    assert time.monotonic() - begin < 5.0


PROGRAM = """
import sys, logging
sys.argv[1:] = ["run"]
from parsl_rasda.cli import main
def app():
    for _ in range(3000):
        print("o" * 100); print("e" * 100, file=sys.stderr)
    open(sys.orig_argv[-1], "w").write(f"fd {open('/dev/null').fileno()}")
main.app = app
import parsl_rasda.cli.patient_output as patient
patient._PATIENCE_S = 0.5
main.main()
"""


@pytest.mark.parametrize("streams", ["full", "closed", "none"])
def test_a_run_ends_by_itself_whatever_its_streams_are(streams: str, tmp_path, pipe: tuple[int, int]) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "end")]
    if streams == "none":
        argv = ["bash", "-c", 'exec "$@" >&- 2>&- <&-', "bash", *argv]
    if streams == "closed":
        os.close(pipe[0])
    process = subprocess.Popen(argv, stdout=pipe[1], stderr=pipe[1])
    assert process.wait(30.0) == 0
    said = (tmp_path / "end").read_text()
    assert int(said.split()[1]) > 2, "no file takes the place of a standard stream"
