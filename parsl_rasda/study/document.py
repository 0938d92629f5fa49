"""YAML files as plain data that remembers the line of each key.

YAML 1.2's core schema, because YAML 1.1 bites: ``1e-4`` is a number here, ``on`` and ``yes`` are
strings, and ``01:30:00`` is not 5400. Keys are strings, each of them once. ``${NAME}`` is replaced by the
environment variable, ``${NAME:-default}`` has a default, ``$${`` is a plain ``${``; what is
replaced without quotes is read as if it had been written there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from parsl_rasda.diagnostics import MOST_MISTAKES, shown
from parsl_rasda.errors import Diagnostic, Loc
from parsl_rasda.study.yaml_nodes import (
    CORE,
    DEEPEST,
    LARGEST_FILE,
    LONGEST_SCALAR,
    MERGE,
    MOST_VALUES,
    PLAIN_TAGS,
    ROOM_OF_COPIES,
    TAG,
    compose,
    decoded,
    refusal,
)
from parsl_rasda.types import JSON

Environment: TypeAlias = Mapping[str, str]

_CONVERSIONS: dict[str, Callable[[str], JSON]] = {
    f"{TAG}str": str,
    MERGE: str,  # as a value it means nothing
    f"{TAG}null": lambda _: None,
    f"{TAG}bool": lambda text: text.lower() == "true",
    f"{TAG}int": lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    f"{TAG}float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}
_PART_OF_ITSELF = "an alias of something it is part of"
_UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")
_MOST_DIGITS = 100
_SURROGATES = re.compile("[\ud800-\udfff]")  # no UTF-8 file can hold these
_FIT = "text that a file in UTF-8 can hold"
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class AsWritten:
    """A value as it stands in a file, with its variables: what is kept of it, for they may be secret.

    Attributes:
        is_plain: Whether it is written without quotes, so that it may become a number.
    """

    text: str
    is_plain: bool


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own protocol

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unless they are escaped, these line breaks of Unicode are read back as "\n".
        style = '"' if _UNICODE_BREAKS.search(data) else None
        return self.represent_scalar(f"{TAG}str", data, style)

    def represent_written(self, data: AsWritten) -> yaml.ScalarNode:
        return self.represent_scalar(f"{TAG}str", data.text, None if data.is_plain else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(AsWritten, _Dumper.represent_written)


for _name, _pattern, _first in PLAIN_TAGS:
    _Dumper.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a value was written: a file, or an option of the command line (then line 0)."""

    source: str
    line: int
    key: Loc


@dataclass(slots=True)
class Document:
    """Plain data, the position of each part, and the mistakes found while reading it.

    Attributes:
        written: Values that had variables in them.
    """

    data: JSON
    positions: dict[Loc, Position]
    written: dict[Loc, AsWritten] = field(default_factory=dict)
    mistakes: list[Diagnostic] = field(default_factory=list)

    def placed(self, found: Diagnostic) -> Diagnostic:
        """Return a diagnostic of the data with the file and line where it was written, and its key there."""
        loc = found.loc
        known = next(loc[:n] for n in range(len(loc), -1, -1) if loc[:n] in self.positions)
        position = self.positions[known]
        return replace(
            found, loc=(*position.key, *loc[len(known) :]), file=position.source, line=position.line
        )

    def move(self, old: Loc, new: Loc) -> None:
        """Let a part be known at another place; messages keep the key that the user wrote."""
        for loc in [loc for loc in self.positions if loc[: len(old)] == old]:
            self.positions[(*new, *loc[len(old) :])] = self.positions.pop(loc)

    def put(self, loc: Loc, other: Document) -> None:
        """Set the value at ``loc``, creating the mappings above it, with the other's positions.

        Raises:
            NoSuchPlaceError: If something above it has no such part.
        """
        container: Any = self.data
        walked: Loc = ()
        for n, part in enumerate(loc, start=1):
            place = _place(container, part, walked)
            walked = (*walked, place)
            if n == len(loc):
                container[place] = other.data
            elif isinstance(container, dict) and container.get(place) is None:
                container[place] = {}
            container = container[place]
        for old in [p for p in self.positions if p[: len(walked)] == walked]:
            del self.positions[old]
        self.positions.update({(*walked, *p): at for p, at in other.positions.items()})
        self.mistakes += other.mistakes


class NoSuchPlaceError(ValueError):
    """A value cannot be put there: what is above it has no parts."""


def read_document(path: Path, environment: Environment, *, is_copy: bool = False) -> Document:
    """Read a YAML file; our own copy of one may be larger, since everything is written out in it.

    Raises:
        InvalidFileError: If it is missing or not a YAML mapping; milder mistakes are kept in the document.
    """
    source = str(path)
    room = ROOM_OF_COPIES if is_copy else 1
    try:
        with path.open("rb") as file:
            text = decoded(file.read(LARGEST_FILE * room + 1), source, room)
    except FileNotFoundError:
        raise refusal(source, 0, "no such file", "an existing YAML file") from None
    except OSError as error:
        raise refusal(source, 0, f"an unreadable file ({error.strerror})", "a readable YAML file") from None
    return parse_document(text, source, environment, room)


def parse_document(text: str, source: str, environment: Environment, room: int = 1) -> Document:
    """Parse the text of a YAML file, which must be a mapping.

    Raises:
        InvalidFileError: If it is not a YAML mapping.
    """
    node = compose(text, source, room=room)
    if node is None:
        raise refusal(source, 1, "an empty file", "a YAML mapping (key: value)")
    document = _Reader(source, environment, Position(source, 1, ())).read(node)
    if not isinstance(document.data, dict):
        raise refusal(source, 1, shown(document.data), "a YAML mapping (key: value)")
    return document


def declared_document(declared: Mapping[str, Any], source: str) -> Document:
    """Return what a program declares in place of a file, within the same limits.

    Raises:
        InvalidFileError: If a file could not hold it.
    """
    places: tuple[Loc, ...] = ((), *((key,) for key in declared))
    document = Document(dict(declared), {loc: Position(source, 0, loc) for loc in places})
    for number, (loc, value) in enumerate(_parts(declared, ())):
        if number > MOST_VALUES:
            raise refusal(source, 0, f"more than {MOST_VALUES} values", "fewer of them")
        if len(loc) > DEEPEST:
            raise refusal(source, 0, "parts in parts in parts, too many to read", "a flatter study")
        for text in (value, loc[-1] if loc else None):
            if not isinstance(text, str):
                continue
            if len(text) > LONGEST_SCALAR:
                raise refusal(source, 0, f"a value of {len(text)} characters", f"at most {LONGEST_SCALAR}")
            if found := _unfit(text):
                document.mistakes.append(document.placed(Diagnostic(loc, found, _FIT)))
    return document


def parse_value(text: str, source: str, key: Loc, environment: Environment) -> Document:
    """Parse a value given on the command line.

    Raises:
        InvalidFileError: If it is not YAML.
    """
    node = compose(text, source, numbered=False) or yaml.ScalarNode(f"{TAG}null", "")
    return _Reader(source, environment, Position(source, 0, key)).read(node)


def dump_document(data: Mapping[str, JSON]) -> str:
    """Return YAML that `parse_document` reads as the same data, whatever the environment.

    Values in the data that are `AsWritten` depend on it.
    """
    return yaml.dump(_escaped(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Reader:
    """Builds plain data from YAML nodes."""

    def __init__(self, source: str, environment: Environment, root: Position) -> None:
        self._source, self._environment, self._root = source, environment, root
        self._document = Document(None, {(): root})
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node) -> Document:
        self._document.data = self._value(node, ())
        return self._document

    def _value(self, node: yaml.Node, loc: Loc) -> JSON:
        if any(node is above for above in self._open):
            self._complain(loc, _PART_OF_ITSELF, "aliases of finished parts")
            return None
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, yaml.SequenceNode):
                return [self._child(child, (*loc, i), child) for i, child in enumerate(node.value)]
            return self._scalar(node, loc)
        finally:
            self._open.pop()

    def _child(self, node: yaml.Node, loc: Loc, marked: yaml.Node) -> JSON:
        line = marked.start_mark.line + 1 if self._root.line else 0
        self._document.positions[loc] = Position(self._source, line, (*self._root.key, *loc))
        return self._value(node, loc)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> JSON:
        mapping: dict[str, JSON] = {}
        for key, value in (*self._merged(node, loc), *(e for e in node.value if e[0].tag != MERGE)):
            name = _spelled(key)
            if found := _unfit(name):
                self._complain(loc, f"{found} in a key", _FIT, at=key)
            elif key.tag != f"{TAG}str":
                self._complain(
                    (*loc, name), f"the key {name}, which is not a string", "strings as keys", at=key
                )
            elif name in mapping:
                first = self._document.positions[(*loc, name)].line
                found = f"the key a second time (first in line {first})" if first else "the key a second time"
                self._complain((*loc, name), found, "each key once", at=key)
            else:
                mapping[name] = self._child(value, (*loc, name), key)
        return mapping

    def _merged(self, node: yaml.MappingNode, loc: Loc) -> list[tuple[yaml.Node, yaml.Node]]:
        """Return what ``<<: *other`` brings: entries of other mappings, unless the node has its own."""
        own = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            others = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for other in others if key.tag == MERGE else ():
                if not isinstance(other, yaml.MappingNode):
                    self._complain(
                        (*loc, "<<"), "something that is not a mapping", "an alias of a mapping", at=key
                    )
                    continue
                if any(other is above for above in self._open):
                    self._complain((*loc, "<<"), _PART_OF_ITSELF, "aliases of finished parts", at=key)
                    continue
                self._open.append(other)
                entries = (*self._merged(other, loc), *(e for e in other.value if e[0].tag != MERGE))
                self._open.pop()
                for entry in entries:
                    if _spelled(entry[0]) not in own:
                        found.setdefault(_spelled(entry[0]), entry)
        return list(found.values())

    def _scalar(self, node: yaml.Node, loc: Loc) -> JSON:
        text, tag = str(node.value), node.tag
        if _VARIABLE.search(text):
            is_plain = isinstance(node, yaml.ScalarNode) and node.style is None  # written without quotes
            if any(found[1] for found in _VARIABLE.finditer(text)):
                self._document.written[loc] = AsWritten(text, is_plain)
            text = self._replaced(text, loc)
            if is_plain:
                tag = TAG + _kind(text)
        if found := _unfit(text):
            self._complain(loc, found, _FIT)
            return None
        if tag == f"{TAG}int" and len(text) > _MOST_DIGITS:
            self._complain(loc, f"a number of {len(text)} digits", f"at most {_MOST_DIGITS} digits")
            return None
        try:
            return _CONVERSIONS[tag](text)
        except (KeyError, ValueError):
            self._complain(loc, f"{shown(text)} with the tag {tag}", "values without tags")
            return None

    def _replaced(self, text: str, loc: Loc) -> str:
        """Return a text with the values of its variables; what they are together is counted first."""
        length = len(text) + sum(
            len(self._environment.get(m[1]) or "") for m in _VARIABLE.finditer(text) if m[1]
        )
        if length > LONGEST_SCALAR:
            found = f"a value of {length} characters with its variables"
            self._complain(loc, found, f"at most {LONGEST_SCALAR}")
            return ""
        return _VARIABLE.sub(lambda m: self._variable(m, loc), text)

    def _variable(self, match: re.Match[str], loc: Loc) -> str:
        name, _, default = match.groups()
        if name is None:
            return "${"
        value: str | None = self._environment.get(name) or default  # as in a shell, empty means unset
        if value is None and name not in self._environment:
            advice = f"set {name}, write ${{{name}:-default}}, or $${{{name}}} to keep the text"
            self._complain(loc, f"${{{name}}}, which is not set in the environment", advice)
        return value or ""

    def _complain(self, loc: Loc, found: str, allowed: str, at: yaml.Node | None = None) -> None:
        if len(self._document.mistakes) >= MOST_MISTAKES:
            return
        if at is not None and self._root.line:
            mistake = Diagnostic(loc, found, allowed, self._source, at.start_mark.line + 1)
        else:
            mistake = self._document.placed(Diagnostic(loc, found, allowed))
        self._document.mistakes.append(mistake)


def _parts(value: object, loc: Loc) -> Iterator[tuple[Loc, object]]:
    """Yield a value and all that is in it, with its place."""
    waiting: list[tuple[Loc, object]] = [(loc, value)]
    while waiting:
        place, part = waiting.pop()
        yield place, part
        if isinstance(part, Mapping):
            waiting += [((*place, str(key)), each) for key, each in part.items()]
        elif isinstance(part, list | tuple):
            waiting += [((*place, n), each) for n, each in enumerate(part)]


def _unfit(text: str) -> str | None:
    """Return words for a character that an escape or an option has brought in, if it can be kept nowhere."""
    wrong = _SURROGATES.search(text)
    return f"the character U+{ord(wrong.group()):04X}" if wrong else None


def _spelled(key: yaml.Node) -> str:
    return str(key.value) if isinstance(key, yaml.ScalarNode) else "?"


def _kind(text: str) -> str:
    return next((name for name, pattern, _ in CORE if re.fullmatch(pattern, text)), "str")


def _place(container: object, part: str | int, walked: Loc) -> str | int:
    """Return the key or index by which a container knows a part."""
    if isinstance(container, dict):
        return str(part)
    above = ".".join(map(str, walked))
    if not isinstance(container, list):
        raise NoSuchPlaceError(f"{above} is {shown(container)}, which has no parts")
    if str(part).isdecimal() and int(part) < len(container):
        return int(part)
    raise NoSuchPlaceError(f"{above} is a list of {len(container)}; its parts are counted from 0")


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(v) for v in value]
    return value
