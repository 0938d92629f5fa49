"""Every key of study and site files: its type, default, what is allowed, what it means, an example.

Read from the JSON Schema, which is made of the models; examples are taken from the studies and sites that
we ship. `explain` shows a key, docs/reference lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from parsl_rasda.study.document import parse_value
from parsl_rasda.study.loading import site_folders
from parsl_rasda.study.schema import schema_of

NAME = "NAME"  # in a path: any name
_SHORT = ("stages", NAME, "tune")  # the keys below it are told as `tune`
_VALUES = {"$ref", "type", "enum", "const", "anyOf", "oneOf"}  # of a form: that it is one of a value
_MOST_SHOWN = 60  # characters of an example
_WORDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "mapping",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file.

    Attributes:
        path: With dots; NAME stands for any name.
        file: ``study`` or ``site``.
        type: In words.
        allowed: What a value may be, in words; empty where the type says it.
        default: As YAML; None if there is none.
        is_required: Whether it must be given, where its block is.
        only: With which choice it exists, as ``kind: grid``; empty: always.
        example: As YAML, and where that stands.
    """

    path: str
    file: str
    type: str
    allowed: str
    default: str | None
    is_required: bool
    only: str
    description: str
    example: str
    used_in: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    @property
    def default_in_words(self) -> str:
        """Its default, or what stands in place of one."""
        if self.is_required:
            return "none: it must be given"
        if self.name == NAME:
            return "nothing"
        return "nothing" if self.default in {None, "null"} else str(self.default)


def canonical(path: str) -> str:
    """Return a path as `Key` has it: what a stage's `tune` has is told once, and names stand for any."""
    match path.split("."):
        case ["stages", _, "tune", *rest]:
            return ".".join(["tune", *rest])
        case ["stages", _, *rest]:
            return ".".join(["stages", NAME, *rest])
        case ["tune", "search_space", _, *rest]:
            return ".".join(["tune", "search_space", NAME, *rest])
        case _:
            return path


def keys_of_file(file: str, *, installed: bool = True) -> tuple[Key, ...]:
    """Return all keys of study or site files, in the order of the models.

    Args:
        file: ``study`` or ``site``.
        installed: With options of plug-ins, and of libraries, that are installed here.
    """
    schema = schema_of(file, installed=installed)
    found: dict[tuple[str, str], Key] = {}
    for key in _Reader(file, schema["$defs"], _shipped_values(file)).keys_below(schema, (), ""):
        found.setdefault((key.path, key.only), key)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class _Reader:
    file: str
    defs: Mapping[str, Any]
    values: Mapping[str, Mapping[str, str]]

    def keys_below(self, node: Mapping[str, Any], path: tuple[str, ...], only: str) -> Iterator[Key]:
        """Yield the keys of a mapping, each followed by those below it."""
        forms = [*self._forms(node)]
        needed = [set(form.get("required", ())) for form in forms if form.get("properties")]
        required = set.intersection(*needed) if needed else set()
        for form in forms:
            for name, field in form.get("properties", {}).items():
                if isinstance(field, Mapping):
                    place = (*path, name)
                    yield self._key(field, place, only, is_required=name in required)
                    if place != _SHORT:
                        yield from self.keys_below(field, place, "")
            if isinstance(values := form.get("additionalProperties"), Mapping) and values:
                yield from self._keys_of_values(values, (*path, NAME))
            if isinstance(items := form.get("items"), Mapping):
                yield from self.keys_below(items, path, "")
            for condition in form.get("allOf", ()):
                if "if" in condition and (chosen := _chosen(condition["if"])):
                    yield from self.keys_below({"type": "object", **condition["then"]}, path, chosen)

    def _keys_of_values(self, values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Key]:
        """Yield the keys of a mapping whose own keys are names that the user gives."""
        below = [*self.keys_below(values, path, "")]
        if below:
            told = [str(form["description"]) for form in self._forms(values) if "description" in form]
            yield self._key({**values, "description": " Or: ".join(told)}, path, "", is_required=False)
            yield from below

    def _forms(self, node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield every form that a value may have, with references followed."""
        if (ref := node.get("$ref")) is not None:
            name = ref.rpartition("/")[2]
            if name != "Variable":
                yield from self._forms(self.defs[name])
            return
        parts = (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ()))
        inner = [part for part in parts if _VALUES & part.keys()]
        for part in inner:
            yield from self._forms(part)
        if not inner:
            yield node
        elif "properties" in node:  # a mapping of which there are two forms
            yield {key: value for key, value in node.items() if key not in {"anyOf", "oneOf"}}

    def _key(self, field: Mapping[str, Any], path: tuple[str, ...], only: str, *, is_required: bool) -> Key:
        forms = [form for form in self._forms(field) if form.get("type") != "null"]
        dotted = ".".join(path)
        used = self.values.get(dotted, {})
        own = [
            *field.get("examples", ()),
            *(field.get(key) for key in ("default",) if field.get(key) is not None),
        ]
        example = next(iter(used.values()), "") or (_yaml({path[-1]: own[0]})[1:-1] if own else "")
        return Key(
            path=dotted,
            file=self.file,
            type=" or ".join(dict.fromkeys(self._words(form) for form in forms)),
            allowed="; ".join(dict.fromkeys(filter(None, map(_allowed, forms)))),
            default=_default(field, forms),
            is_required=is_required,
            only=only,
            description=" ".join(str(field.get("description", "")).split()),
            example=example,
            used_in=tuple(used),
        )

    def _words(self, form: Mapping[str, Any]) -> str:
        kinds = form.get("type")
        if kinds is None and ("enum" in form or "const" in form):
            kinds = "string"
        if form.get("enum"):
            return "word"
        if isinstance(kinds, list):
            return " or ".join(_WORDS[kind] for kind in kinds if kind != "null")
        if kinds == "array" and (items := form.get("items")):
            inner = " or ".join(dict.fromkeys(self._words(each) for each in self._forms(items)))
            return f"list of {inner}s" if " " not in inner or inner == "whole number" else f"list of {inner}"
        return _WORDS.get(kinds or "", "any value")


def _default(field: Mapping[str, Any], forms: Sequence[Mapping[str, Any]]) -> str | None:
    if "default" in field:
        return _yaml(field["default"])
    return "that of each of its keys" if any("properties" in form for form in forms) else None


def _chosen(condition: Mapping[str, Any]) -> str:
    """Return ``kind: grid`` for the condition that a plug-in is chosen, else nothing."""
    words = [
        f"{key}: {form['const']}" for key, form in condition.get("properties", {}).items() if "const" in form
    ]
    return words[0] if len(words) == 1 else ""


def _allowed(form: Mapping[str, Any]) -> str:
    if words := form.get("patternErrorMessage"):
        return str(words)
    if values := form.get("enum"):
        return ", ".join(_yaml(value) for value in values)
    if "const" in form:
        return _yaml(form["const"])
    low, high = form.get("minimum"), form.get("maximum")
    more, less = form.get("exclusiveMinimum"), form.get("exclusiveMaximum")
    bounds = [f"more than {more:g}" if more is not None else f"at least {low}" if _tells(low) else ""]
    bounds += [f"less than {less:g}" if less is not None else f"at most {high}" if _tells(high) else ""]
    return ", ".join(filter(None, bounds))


def _tells(limit: float | None) -> bool:
    """Whether a limit is more than a guard against nonsense."""
    return limit is not None and abs(limit) < 1e6  # noqa: PLR2004 - `spec.MOST` and all that is larger


def _yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


# ---------------------------------------------------------------------------------------- examples


@cache
def _shipped_values(file: str) -> Mapping[str, Mapping[str, str]]:
    """Return for each path the values of shipped files, as YAML, by the name of the file."""
    found: dict[str, dict[str, str]] = {}
    for path in _shipped_files(file):
        name = path.parent.name if path.stem == "study" else path.stem
        text = path.read_text(encoding="utf-8").replace("${", "$${")  # variables as they are written
        data = parse_value(text, str(path), (), {}).data
        for place, value in _places(data, ()):
            shown = _yaml({place[-1]: value})[1:-1]
            if len(shown) <= _MOST_SHOWN:
                found.setdefault(".".join(place), {}).setdefault(name, shown)
    return found


def _shipped_files(file: str) -> Sequence[Path]:
    if file == "site":
        return [each for folder in site_folders()[1:] for each in sorted(folder.glob("*.yaml"))]
    folders = [folder.parent / "workflows" for folder in site_folders()[1:]]
    return [each for folder in folders for each in sorted(folder.glob("*/study.yaml"))]


def _places(data: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        place = (*path, str(key))
        match place:
            case ("stages", _):
                place = ("stages", NAME)
            case ("stages", _, "tune"):
                place = ("tune",)
            case ("tune", "search_space", _):
                place = ("tune", "search_space", NAME)
            case _:
                pass
        yield place, value
        yield from _places(value, place)
