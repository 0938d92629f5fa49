"""What a file may be: bounded before anything is built from it, and told with its line."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from parsl_rasda.cli.options import load_inputs
from parsl_rasda.errors import InvalidFileError
from parsl_rasda.orchestration.assembly import build_study_searcher
from parsl_rasda.study import declare_study, dump_study, load_site, load_study
from parsl_rasda.study.document import parse_document

SITE = "provider: {type: LocalProvider}\naccelerator: none\nmpi_launcher: process\n"
TUNE = """\
name: x
tune:
  metric: loss
  num_samples: 4
  scheduler: {max_t: 4}
  search_space: {lr: {float: [0.1, 1]}}
  training: {command: [train, "{lr}", "{report}", "{until}"]}
"""


def _said(text: str | bytes, tmp_path: Path) -> str:
    file = tmp_path / "s.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidFileError) as error:
        load_study(file)
    return str(error.value).replace(f"{tmp_path}/", "")


def _bomb(kind: str, depth: int = 9) -> str:
    first = {"list": "[x,x,x,x,x,x,x,x,x]", "merge": "{a: 1, b: 2, c: 3}", "text": "x" * 200}[kind]
    lines = [f"a0: &a0 {first}"]
    for n in range(1, depth):
        nine = ",".join([f"*a{n - 1}"] * 9)
        lines.append(f"a{n}: &a{n} " + (f"{{<<: [{nine}]}}" if kind == "merge" else f"[{nine}]"))
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["list", "merge", "text"])
def test_aliases_are_counted_before_they_are_written_out(kind: str, tmp_path: Path) -> None:
    tracemalloc.start()
    began = time.process_time()
    said = _said(_bomb(kind), tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said.startswith("s.yaml:")
    assert "with its aliases written out; allowed: a smaller file" in said
    assert time.process_time() - began < 1
    assert peak < 50_000_000


def test_blocks_that_are_merged_a_few_times_are_still_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\n" + "".join(f"b{n}: {{<<: *a, x: {n}}}\n" for n in range(100))
    assert parse_document(text, "f.yaml", {}).data["b99"] == {"x": 99, "y": [1, 2]}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (
            b'name: x\nseed: 1\na: "\x01"\n',
            "s.yaml:3: the file: found bytes that are not YAML: the character U+0001",
        ),
        (b"name: x\na: \x00\n", "s.yaml:2: the file: found bytes that are not YAML: the character U+0000"),
        (
            b"name: x\r\na: \x7f\r\n",
            "s.yaml:2: the file: found bytes that are not YAML: the character U+007F",
        ),
        (
            b"name: x\nseed: 1\na: M\xfcller\n",
            "s.yaml:3: the file: found bytes that are not text (0xfc at 20)",
        ),
        ("name: x\n".encode("utf-16"), "s.yaml:1: the file: found bytes that are not text"),
        (
            "name: x\n\ufeffseed: 1\n".encode(),
            "s.yaml:2: the file: found bytes that are not YAML: the character U+FEFF",
        ),
        ("name: x\na: " + "[" * 2000, "s.yaml:2: the file: found parts in parts in parts, too many to read"),
        (
            "name: x\na:\n" + "".join(" " * n + "- \n" for n in range(200)),
            "s.yaml:102: the file: found parts in",
        ),
        (
            "name: x\na: " + "z" * 70_000,
            "s.yaml:2: the file: found a value of 70000 characters; allowed: at most 65536",
        ),
        ("name: x\n? " + "z" * 300 + "\n: 1", "s.yaml:2: the file: found a key of 300 characters"),
        (
            "name: x\nseed: " + "9" * 5000,
            "s.yaml:2: seed: found a number of 5000 digits; allowed: at most 100 digits",
        ),
        ("name: x\nseed: 0x" + "f" * 5000, "s.yaml:2: seed: found a number of 5002 digits"),
        (
            "name: x\nseed: " + "9" * 30,
            "s.yaml:2: seed: found 999999999999999999999999999999; allowed: less than or",
        ),
        ("name: x\nseed: 1\nseed: 2\n", "s.yaml:3: seed: found the key a second time (first in line 2)"),
        ('name: x\nseed: "\\ud800"\n', "s.yaml:2: seed: found the character U+D800"),
        ("name: x\na: *nobody\n", "s.yaml:2: the file: found broken YAML: an undefined alias *nobody"),
        ("", "s.yaml:1: the file: found an empty file"),
        ("%TAG ! tag:x,2000:\n---\nname: x\n", "s.yaml:1: the file: found broken YAML: %TAG"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(content: str | bytes, place: str, tmp_path: Path) -> None:
    assert place in _said(content, tmp_path)


def test_a_mark_of_byte_order_in_front_is_none_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbf" + TUNE.encode())
    assert load_study(tmp_path / "s.yaml").name == "x"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(InvalidFileError, match="more than 1000000 bytes"):
        load_study("/dev/zero")


def test_a_key_cannot_write_lines_of_its_own(tmp_path: Path) -> None:
    said = _said('name: x\n"a\\nb\\e[31m": 1\n', tmp_path)
    assert "\x1b" not in said
    assert all(line.startswith("s.yaml:") for line in said.split("\n"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("gpus_per_node: 1000000000000000000000000000000", "s.yaml:4: gpus_per_node: found 1000000000000"),
        (
            "gpus_per_node: 1000000000",
            "s.yaml:4: gpus_per_node: found 1000000000; allowed: a whole number from 1",
        ),
        (
            "nodes: 1000000000",
            "s.yaml:4: nodes: found 1000000000; allowed: a whole number from 1 to 100000, or auto",
        ),
        ("pilots: 1000000000", "s.yaml:4: pilots: found 1000000000; allowed: less than or equal to 1000"),
        ("pilots: 500\nnodes: 500", "which makes 250000 slots in all; allowed: at most 200000 slots"),
        ("threads_per_rank: 1000000000", "s.yaml:4: threads_per_rank: found 1000000000"),
        ("cores_of_gpu: [0-99999999999]", "s.yaml:4: cores_of_gpu.0: found '0-99999999999'"),
        ("checkpoint_margin: 1.0e300", "s.yaml:4: checkpoint_margin: found 1e+300; allowed: less than"),
        ("environment: {'': x}", "s.yaml:4: environment.: found ''; allowed: the name of a variable"),
        ("environment: {A=B: x}", "s.yaml:4: environment.A=B: found 'A=B'; allowed: the name of a variable"),
    ],
)
def test_a_site_is_no_larger_than_machines_are(settings: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"{SITE}{settings}\n")
    with pytest.raises(InvalidFileError) as error:
        load_site(tmp_path / "s.yaml")
    assert said in str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "num_samples: 4",
            "num_samples: 1000000000",
            "s.yaml:4: tune.num_samples: found 1000000000; allowed: less",
        ),
        ("max_t: 4", "max_t: 1000000000", "s.yaml:5: tune.scheduler.max_t: found 1000000000"),
        (
            "max_t: 4",
            "max_t: 4, num_workers: 1000000000",
            "s.yaml:5: tune.scheduler.num_workers: found 1000000000",
        ),
        (
            "max_t: 4",
            f"max_t: 4, scaling_factor: {10**40}",
            "s.yaml:5: tune.scheduler.scaling_factor: found 1",
        ),
        ("[0.1, 1]", "[-1.0e308, 1.0e308]", "s.yaml:6: tune.search_space.lr.float"),
        ("float: [0.1, 1]", f"int: [0, {10**30}]", "s.yaml:6: tune.search_space.lr.int: found 1"),
        (
            "[0.1, 1]",
            "[0, 1], step: 1.0e-300",
            "s.yaml:6: tune.search_space.lr.step: found 1e-300, which makes too",
        ),
        ("{float: [0.1, 1]}", "[1, 2]", "(did you mean {choice: [1, 2]} or {int: [1, 2]}?)"),
        ("{float: [0.1, 1]}", "[0.1, 1]", "(did you mean {choice: [0.1, 1]} or {float: [0.1, 1]}?)"),
        (
            "{float: [0.1, 1]}",
            "[a, b]",
            "s.yaml:6: tune.search_space.lr: found ['a', 'b']; allowed: a mapping with",
        ),
    ],
)
def test_a_study_is_no_larger_than_studies_are(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert said in _said(TUNE.replace(old, new), tmp_path)


def test_a_stage_is_called_so_often_at_most(tmp_path: Path) -> None:
    lists = ", ".join(f"{name}: [{', '.join(map(str, range(50)))}]" for name in "abc")
    said = _said(f"name: x\nstages:\n  s:\n    command: [a]\n    for_each: {{{lists}}}\n", tmp_path)
    assert "s.yaml:5: stages.s.for_each: found 125000 combinations; allowed: at most 100000" in said


def test_a_list_may_be_a_constant_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TUNE.replace("{float: [0.1, 1]}", "{constant: [1, 2]}"))
    assert load_study(tmp_path / "s.yaml").tune_stages["tune"].tune.search_space["lr"] == {"constant": [1, 2]}


@pytest.mark.parametrize("kind", ["random", "sobol", "grid", "tpe", "cmaes", "gp"])
def test_every_searcher_takes_every_seed(kind: str, tmp_path: Path) -> None:
    text = TUNE.replace("name: x\n", f"name: x\nseed: {2**64 - 1}\n").replace(
        "[0.1, 1]}", "[0.1, 1]}, n: {int: [1, 3]}"
    )
    (tmp_path / "s.yaml").write_text(text + f"  searcher: {{kind: {kind}}}\n")
    study = load_study(tmp_path / "s.yaml")
    assert build_study_searcher(study.tune_stages["tune"].tune, study.seed).propose("t1") is not None


def test_a_large_grid_is_sized_without_being_built_for_every_number_of_levels(tmp_path: Path) -> None:
    text = TUNE.replace("num_samples: 4", "num_samples: 100000").replace(
        "[0.1, 1]}", "[0.1, 1]}, b: {float: [0, 1]}"
    )
    (tmp_path / "s.yaml").write_text(text + "  searcher: {kind: grid}\n")
    began = time.process_time()
    tune = load_inputs(tmp_path / "s.yaml", []).study.tune_stages["tune"].tune
    assert len(build_study_searcher(tune, 0)) == 316**2
    assert time.process_time() - began < 5


def test_a_program_is_held_to_what_a_file_can_hold() -> None:
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    tune = {"metric": "loss", "num_samples": 1, "scheduler": {"max_t": 1}, "training": {"command": ["true"]}}
    for wrong in (deep, "\ud800", "x" * 70_000, [0] * 200_000):
        with pytest.raises(InvalidFileError):
            declare_study(
                {"name": "x", "tune": {**tune, "search_space": {"a": {"constant": wrong}}}}, "Study"
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "constant",
    [
        f"[&a '{chr(0x1D6FC) * 60_000}'{', *a' * 15}]",
        f"[&a '{chr(34) * 60_000}'{', *a' * 15}]",
        "[" * 80 + f"&a [{'0, ' * 10_000}0]{', *a' * 8}" + "]" * 80,
    ],
    ids=["characters of four bytes", "quotes", "indentation"],
)
def test_what_is_accepted_can_be_read_from_its_copy(constant: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        TUNE.replace("search_space: {", f"search_space: {{big: {{constant: {constant}}}, "), "utf-8"
    )
    study = load_study(file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_study(study), "utf-8")
    assert load_study(copy, is_copy=True) == study


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('work_dir: "/a\\0"', "work_dir"),
        ('environment: {A: "\\0"}', "environment.A"),
        ('launcher_options: ["\\0"]', "launcher_options.0"),
    ],
)
def test_what_becomes_a_path_or_a_command_has_no_nul(line: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"{SITE}{line}\n")
    with pytest.raises(InvalidFileError) as error:
        load_site(tmp_path / "s.yaml")
    assert f"s.yaml:4: {key}: found" in str(error.value)
    assert "U+0000" in str(error.value)


MANY = {
    "unknown keys": TUNE + "".join(f"k{n}: 1\n" for n in range(40_000)),
    "stages that need what is not there": "name: x\nstages:\n"
    + "".join(f"  s{n}: {{command: [a], needs: {{x: t{n}}}}}\n" for n in range(9_000)),
    "conditions on nothing": TUNE.replace(
        "{lr: {float: [0.1, 1]}}",
        "{" + ", ".join(f"p{n}: {{choice: [a, b], when: {{q{n}: a}}}}" for n in range(9_000)) + "}",
    ),
    "choices that are the same": TUNE.replace("{float: [0.1, 1]}", f"{{choice: [{'1, ' * 90_000}]}}"),
    "placeholders": "name: x\nstages:\n  s: {command: [" + "'{q}', " * 60_000 + "]}\n",
    "keys twice": "name: x\n" * 40_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", MANY)
def test_very_many_mistakes_are_told_soon_and_not_all(what: str, tmp_path: Path) -> None:
    began = time.process_time()
    said = _said(MANY[what], tmp_path)
    assert time.process_time() - began < 8  # below 2 s on a quiet machine
    assert 1 <= len(said.splitlines()) <= 100
    assert len(said) < 100_000
