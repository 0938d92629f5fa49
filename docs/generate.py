"""Write docs/reference, the pictures and the JSON Schemas from code and docstrings: `make reference`."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import get_args

from docs.pictures import pictures
from parsl_rasda import errors
from parsl_rasda.orchestration import events
from parsl_rasda.study import reference
from parsl_rasda.study.schema import KINDS, as_text, schema_of, shipped

ROOT = Path(__file__).resolve().parents[1]
_RUNTIME = ROOT / "parsl_rasda" / "runtime"
_MADE = "<!-- Made by `make reference`; change the descriptions in the code instead. -->"


def pages() -> dict[Path, str]:
    """Return the text of each file that is made."""
    written = {
        "study.md": keys_page("study"),
        "site.md": keys_page("site"),
        "trial.md": trial_page(),
        "events.md": events_page(),
        "exit_codes.md": exit_codes_page(),
    }
    found = {ROOT / "docs" / "reference" / name: "\n".join(lines) + "\n" for name, lines in written.items()}
    found |= {shipped(kind): as_text(schema_of(kind, installed=False)) for kind in KINDS}
    return found | pictures()


def keys_page(file: str) -> Iterator[str]:
    """Yield the page of a file's keys, a table for each block."""
    yield from (f"# Keys of a {file} file", "", _MADE, "")
    yield "`parsl-rasda explain KEY` shows one of them, with an example, and options of plug-ins and Optuna's"
    yield f"samplers, which are not listed here; `parsl-rasda schema {file}` prints the JSON Schema."
    yield "**Bold** keys must be given where their block is."
    keys = reference.keys_of_file(file, installed=False)
    by_block = groupby(sorted(keys, key=_block_order(keys)), key=_block)
    for block, below in by_block:
        yield from ("", f"## `{block}`" if block else "## At the top", "")
        yield from ("| Key | Value | Default | Meaning |", "|---|---|---|---|")
        for key in below:
            name = f"**`{key.name}`**" if key.is_required else f"`{key.name}`"
            value = f"{key.type}: {key.allowed}" if key.allowed else key.type
            default = "" if key.is_required else f"{key.default_in_words}"
            only = f"With `{key.only}`. " if key.only else ""
            yield f"| {name} | {_cell(value)} | {_cell(default)} | {_cell(only + key.description)} |"


def _block(key: reference.Key) -> str:
    return key.path.rpartition(".")[0]


def _block_order(keys: tuple[reference.Key, ...]):
    first = {}
    for number, key in enumerate(keys):
        first.setdefault(_block(key), number)
    return lambda key: first[_block(key)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def trial_page() -> Iterator[str]:
    """Yield the page of what a training function may call."""
    yield from ("# What a training function may ask of its `Trial`", "", _MADE)
    for file, name in (("trial_facts.py", "TrialFacts"), ("trial.py", "Trial")):
        module = ast.parse((_RUNTIME / file).read_text(encoding="utf-8"))
        owner = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)
        if name == "TrialFacts":
            yield from ("", *_said(ast.get_docstring(owner) or ""))
        for method in owner.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                yield from ("", f"## `{_signature(method)}`", "", *_said(ast.get_docstring(method) or ""))


def _signature(method: ast.FunctionDef) -> str:
    if any("property" in ast.unparse(each) for each in method.decorator_list):
        return f"trial.{method.name}"
    method.args.args = method.args.args[1:]  # without self
    for argument in [*method.args.args, *method.args.kwonlyargs]:
        argument.annotation = None
    if method.args.kwarg:
        method.args.kwarg.annotation = None
    return f"trial.{method.name}({ast.unparse(method.args)})"


def events_page() -> Iterator[str]:
    """Yield the page of what the journal of a run holds."""
    yield from ("# Events and instructions", "", _MADE, "")
    yield "The lines of a run's `journal.jsonl`: what happened, and what was done about it; `type` names it."
    unions = (("Events", events.Event), ("Instructions", events.Instruction))
    for title, union in unions:
        yield from ("", f"## {title}")
        for record in get_args(union):
            fields = ", ".join(f"`{name}`" for name in record.__struct_fields__)
            yield from ("", f"### `{record.__name__}`", "", *([f"Fields: {fields}.", ""] if fields else []))
            yield from _said(inspect.getdoc(record) or "")


def exit_codes_page() -> Iterator[str]:
    """Yield the page of exit codes, with the errors that end so."""
    yield from ("# Exit codes", "", _MADE, "", "| Code | Meaning | Errors |", "|---|---|---|")
    named = [
        each
        for each in vars(errors).values()
        if inspect.isclass(each) and issubclass(each, errors.RasdaError)
    ]
    for code, meaning in errors.EXIT_CODES.items():
        ends_so = ", ".join(f"`{each.__name__}`" for each in named if each.exit_code == code)
        yield f"| {code} | {meaning} | {ends_so} |"
    yield from ("", "Any other code is that of a bug, which shows its traceback.", "", "## Errors", "")
    for each in named:
        yield f"- `{each.__name__}`: {inspect.getdoc(each).splitlines()[0]}"


def _said(docstring: str) -> Iterator[str]:
    """Yield a docstring in Google's sections as Markdown."""
    for paragraph in docstring.split("\n\n"):
        title, _, rest = paragraph.partition(":\n")
        if title not in {"Args", "Returns", "Raises", "Attributes", "Yields"}:
            yield from (*paragraph.replace("``", "`").splitlines(), "")
            continue
        yield from (f"{'Arguments' if title == 'Args' else title}:", "")
        for line in _joined(textwrap.dedent(rest)):
            name, colon, text = line.partition(": ")
            yield f"- `{name}`: {text}" if colon and " " not in name else f"- {line}"
        yield ""


def _joined(text: str) -> Iterator[str]:
    """Yield the entries of a section, each with its further lines."""
    entry = ""
    for line in text.replace("``", "`").splitlines():
        if entry and not line.startswith(" "):
            yield entry
            entry = ""
        entry = f"{entry} {line.strip()}".strip()
    if entry:
        yield entry


def main() -> None:
    """Write every page that has changed."""
    for file, text in pages().items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {file.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
