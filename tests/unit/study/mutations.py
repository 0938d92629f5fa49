"""Mutated study and site files: what people and editors do to a file, and what attackers would."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
STUDIES = sorted(REPOSITORY.glob("workflows/*/study.yaml"))
SITES = sorted(p for p in REPOSITORY.glob("site_configs/*.yaml"))
DIAGNOSTIC = re.compile(r"^[^\n]*?:\d+: [^\n]+?: found [^\n]+; allowed: [^\n]+$")

VARIABLES = {"RASDA_ACCOUNT": "a", "RASDA_VENV": "/venv", "RASDA_WORK": "/work", "USER": "u"}

_VALUES = [
    *("~", "''", "[]", "{}", "0", "-1", "1", "true", "[[]]", "{a: {b: c}}", "nan", ".nan", ".inf", "-.inf"),
    *("1e308", "1e-308", "-1e308", "1e999999", "4e5", "0.1", "10000000", "1000000000", "9" * 30, "9" * 5000),
    *(
        "0x" + "f" * 3000,
        "-" + "9" * 400,
        "٣",
        "1_000",
        "01:30:00",
        "2024-01-01",
        "yes",
        "x" * 3000,
        "y " * 40_000,
    ),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\x1b[31m"',
        '"\\u202e"',
        "'a\nb'",
        "${HOME}",
        "${NOT_SET_ANYWHERE}",
        "${",
        "$${X}",
    ),
    *("*a", "&a b", "&a [*a]", "!!python/object:os.system x", "!!int x", "!!binary x", "!x y", "<<", "? a"),
    *("[1, 2]", "[a, b]", "[1, [2]]", "{float: [0, 1]}", "{int: [1, 1e9]}", "{choice: [1, 1]}", "{float: 1}"),
    *("{int: [0, 900719925474099300]}", "{float: [0, 1], step: 1e-300}", "{choice: [{}], when: {x: 1}}"),
    *(
        "{kind: tpe}",
        "{kind: grid}",
        "{kind: list, configs: [1]}",
        "a:b",
        "{x}",
        "{",
        "auto",
        "each",
        "http://[",
    ),
]
_LINES = [
    *(
        "x: 1",
        "<<: *a",
        "<<: [1]",
        "%TAG ! x",
        "---",
        "...",
        "\t- a",
        "- b",
        "? [a, b]\n: c",
        "1: 2",
        "\ufeffname: x",
    ),
    *(
        "environment: {'': x}",
        "seed: 99999999999999999999999",
        "pilots: 100000",
        "nodes: 999999",
        "with: [1]",
    ),
]
_BYTES = [
    b"\0",
    b"\x01",
    b"\x1b",
    b"\x7f",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r",
    b"\t",
    b"\xc2\x85",
]
_BYTES += [
    b"[",
    b"{",
    b"]",
    b"}",
    b"'",
    b'"',
    b":",
    b"-",
    b"#",
    b"&a ",
    b"*a",
    b"|",
    b">",
    b"!",
    b"%",
    b"@",
    b"`",
    b",",
]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return a file with one to three changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(_MUTATIONS)(data, draw)
    return data


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a study and a site of which one is mutated, the same for the same seed.

    Args:
        seed: Of the mutations.
        count: How many.
        folder: Where they are written; studies beside copies of their own modules.
    """
    for study in STUDIES:
        shutil.copytree(
            study.parent, folder / study.parent.name, ignore=shutil.ignore_patterns("*.md", "data")
        )
    draw = random.Random(seed)
    for _ in range(count):
        study, site = draw.choice(STUDIES), next(s for s in SITES if s.stem == "local")
        if draw.random() < 0.6:
            file = study = folder / study.parent.name / "mutated.yaml"
            data = (file.parent / "study.yaml").read_bytes()
        else:
            original = draw.choice(SITES)
            file = site = folder / "site.yaml"
            data = original.read_bytes()
        file.write_bytes(mutated(data, draw))
        yield study, site


def _byte(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(_BYTES) + data[at + draw.choice((0, 0, 1, 3)) :]


def _value(data: bytes, draw: random.Random) -> bytes:
    """Put another value after a colon, in a block or in a flow."""
    places = [*re.finditer(rb"(?<=: )[^\n,}\]#]+", data)]
    if not places:
        return data
    place = draw.choice(places)
    return data[: place.start()] + draw.choice(_VALUES).encode("utf-8", "surrogatepass") + data[place.end() :]


def _key(data: bytes, draw: random.Random) -> bytes:
    places = [*re.finditer(rb"\w+(?=:)", data)]
    if not places:
        return data
    place, other = draw.choice(places), draw.choice(places)
    new = draw.choice(
        [other.group(), place.group()[:-1], place.group()[::-1], b"k" * 300, b"~", b"[a]", b"\xc3\xa4"]
    )
    return data[: place.start()] + new + data[place.end() :]


def _line(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    what = draw.randrange(5)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[draw.randrange(len(lines))])
    elif what == 2:
        lines[at] = b" " * draw.randrange(1, 5) + lines[at]
    elif what == 3:
        indent = len(lines[at]) - len(lines[at].lstrip())
        lines.insert(at, b" " * indent + draw.choice(_LINES).encode())
    else:
        lines[at] = lines[at].lstrip()
    return b"\n".join(lines)


def _cut(data: bytes, draw: random.Random) -> bytes:
    first, last = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
    return data[:first] if draw.random() < 0.5 else data[:first] + data[last:]


def _bomb(data: bytes, draw: random.Random) -> bytes:
    depth, width = draw.randrange(2, 12), draw.randrange(2, 12)
    lines = [
        f"a0: &a0 [{','.join('x' * width)}]",
        f"m0: &m0 {{{','.join(f'k{i}: 1' for i in range(width))}}}",
    ]
    for n in range(1, depth):
        lines.append(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * width)}]")
        lines.append(f"m{n}: &m{n} {{<<: [{','.join([f'*m{n - 1}'] * width)}]}}")
    return "\n".join(lines).encode() + b"\n" + data


def _deep(data: bytes, draw: random.Random) -> bytes:
    text = draw.choice([b"[", b"{a: ", b"- ", b"? "]) * draw.choice([50, 99, 101, 500, 5000])
    return data + b"\ndeep: " + text + b"\n"


def _encoded(data: bytes, draw: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]))


def _ends(data: bytes, draw: random.Random) -> bytes:
    return data.replace(b"\n", draw.choice([b"\r\n", b"\r", b"\xe2\x80\xa8", b"\n\n"]))


_MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *([_byte] * 4),
    *([_value] * 8),
    *([_key] * 3),
    *([_line] * 3),
    _cut,
    _bomb,
    _deep,
    _encoded,
    _ends,
]
