"""From the text of a YAML file to its nodes, bounded before anything is built from them.

A few hundred bytes of aliases can stand for more than any memory holds, so what they would write out is
counted while the text is read. libyaml reads, about twenty times as fast as Python; what it refuses is read
again by PyYAML's own reader, whose messages are the better ones.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from parsl_rasda.errors import Diagnostic, InvalidFileError

LARGEST_FILE = 1_000_000  # characters, also of all scalars when aliases are written out
MOST_VALUES = 100_000  # when aliases are written out
DEEPEST = 100  # parts in parts
LONGEST_SCALAR = 65_536  # characters
LONGEST_KEY = 256
ROOM_OF_COPIES = 32  # times as much: our own copies have aliases, defaults and indentation written out

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"  # ``<<``: not in YAML 1.2 any more, but what people repeat a block with
CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
PLAIN_TAGS = (*CORE, ("merge", "<<", ["<"]))

_LONGEST_SECOND_READING = 50_000  # characters; PyYAML's own reader takes a second for ten times as many
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LINE_END = re.compile(r"\r\n?|\n")
_TAG_DIRECTIVE = re.compile(r"^%TAG", re.MULTILINE)  # libyaml compares each with all others
_TEXT = "YAML in UTF-8, without control characters"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own protocol


class _QuickLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # only with libyaml
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own protocol


for _name, _pattern, _first in PLAIN_TAGS:
    for _class in (_Loader, _QuickLoader):
        _class.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def decoded(data: bytes, source: str, room: int = 1) -> str:
    """Return the text of a file, which may have ``room`` times as many bytes as a study file.

    Raises:
        InvalidFileError: If it is too large, or not UTF-8.
    """
    if len(data) > LARGEST_FILE * room:
        raise refusal(source, 1, f"more than {LARGEST_FILE * room} bytes", "a smaller file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = line_at(data[: error.start].decode("utf-8", "replace"))
        found = f"bytes that are not text (0x{data[error.start]:02x} at {error.start})"
        raise refusal(source, line, found, "YAML in UTF-8") from None


def compose(text: str, source: str, *, numbered: bool = True, room: int = 1) -> yaml.Node | None:
    """Return the root node of a YAML text, None if it has none.

    Args:
        text: The text.
        source: What messages call it.
        numbered: Whether it has lines to name.
        room: How many times as large as a study file it may be.

    Raises:
        InvalidFileError: If it is not YAML, or larger than the limits allow.
    """
    _check_characters(text, source, numbered=numbered)
    try:
        try:
            return _Composer(_QuickLoader(text), room).document()
        except yaml.MarkedYAMLError:
            if len(text) > _LONGEST_SECOND_READING:
                raise
        return _Composer(_Loader(text), room).document()
    except yaml.MarkedYAMLError as error:
        raise _broken(error, source, numbered=numbered) from None
    except _TooMuchError as error:
        raise refusal(source, error.line if numbered else 0, error.found, error.allowed) from None


def refusal(source: str, line: int, found: str, allowed: str) -> InvalidFileError:
    """Return the error of a file that cannot be read at all."""
    return InvalidFileError([Diagnostic((), found, allowed, source, line)])


def line_at(text_before: str) -> int:
    """Return the number of the line that follows a text."""
    return len(_LINE_END.findall(text_before)) + 1


def _check_characters(text: str, source: str, *, numbered: bool) -> None:
    if wrong := _NOT_YAML.search(text) or _TAG_DIRECTIVE.search(text):
        line = line_at(text[: wrong.start()]) if numbered else 0
        if wrong.re is _TAG_DIRECTIVE:
            raise refusal(source, line, "broken YAML: %TAG", "values without tags")
        found = f"bytes that are not YAML: the character U+{ord(wrong.group()):04X}"
        raise refusal(source, line, found, _TEXT)


def _broken(error: yaml.MarkedYAMLError, source: str, *, numbered: bool) -> InvalidFileError:
    mark = error.problem_mark or error.context_mark
    found = str(error.problem or error.context)
    if "cannot start any token" in found and "\\t" in found:
        found = "a tab"
    line = mark.line + 1 if mark and numbered else 0
    if line and error.context_mark and error.context_mark.line + 1 < line:
        found += f" ({error.context} that begins in line {error.context_mark.line + 1})"
    return refusal(source, line, f"broken YAML: {found}", "YAML, indented by blanks")


class _TooMuchError(Exception):
    """A limit is passed, in this line."""

    def __init__(self, line: int, found: str, allowed: str) -> None:
        super().__init__(line, found, allowed)
        self.line, self.found, self.allowed = line, found, allowed


class _Composer:
    """Makes nodes of a loader's events, and counts what they will be when aliases are written out."""

    def __init__(self, loader: Any, room: int) -> None:  # Any: PyYAML's loaders have no types for events
        self._loader, self._room = loader, room
        self._values, self._characters = 0, 0
        self._anchors: dict[str, tuple[yaml.Node, int, int]] = {}

    def document(self) -> yaml.Node | None:
        """Return the root of the only document, None if there is none."""
        self._loader.get_event()  # the stream's start
        if self._loader.check_event(yaml.StreamEndEvent):
            return None
        start = self._loader.get_event()
        root = self._node(1)
        self._loader.get_event()  # the document's end
        if not self._loader.check_event(yaml.StreamEndEvent):
            another = self._loader.get_event().start_mark
            context = "expected a single document in the stream"
            raise yaml.composer.ComposerError(
                context, start.start_mark, "but found another document", another
            )
        return root

    def _node(self, depth: int) -> yaml.Node:
        event = self._loader.get_event()
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event)
        if event.anchor in self._anchors:
            found = f"the anchor &{event.anchor} a second time"
            raise yaml.composer.ComposerError(None, None, found, event.start_mark)
        if depth > DEEPEST:
            found = f"parts in parts in parts, too many to read: more than {DEEPEST}"
            raise _TooMuchError(event.start_mark.line + 1, found, "a flatter file")
        before = (self._values, self._characters)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        self._count(event, 1, 0)
        node: yaml.Node
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[yaml.Node] = []
            node = self._anchored(event, yaml.SequenceNode(self._tag(event, yaml.SequenceNode), items))
            while not self._loader.check_event(yaml.SequenceEndEvent):
                items.append(self._node(depth + 1))
        else:
            pairs: list[tuple[yaml.Node, yaml.Node]] = []
            node = self._anchored(event, yaml.MappingNode(self._tag(event, yaml.MappingNode), pairs))
            while not self._loader.check_event(yaml.MappingEndEvent):
                key = self._node(depth + 1)
                self._check_key(key)
                pairs.append((key, self._node(depth + 1)))
        self._loader.get_event()  # its end
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, self._values - before[0], self._characters - before[1])
        return node

    def _scalar(self, event: Any) -> yaml.Node:
        length = len(event.value)
        if length > LONGEST_SCALAR:
            raise _TooMuchError(
                event.start_mark.line + 1, f"a value of {length} characters", f"at most {LONGEST_SCALAR}"
            )
        self._count(event, 1, length)
        tag = self._tag(event, yaml.ScalarNode, event.value)
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark, event.style or None)
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, 1, length)
        return node

    def _aliased(self, event: Any) -> yaml.Node:
        if event.anchor not in self._anchors:
            found = f"an undefined alias *{event.anchor}"
            raise yaml.composer.ComposerError(None, None, found, event.start_mark)
        node, values, characters = self._anchors[event.anchor]
        self._count(event, values, characters)
        return node

    def _anchored(self, event: Any, node: yaml.Node) -> yaml.Node:
        """Place a node, and make it known to the aliases inside it, which `document` refuses with words."""
        node.start_mark, node.end_mark = event.start_mark, event.end_mark
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, 1, 0)
        return node

    def _tag(self, event: Any, kind: type[yaml.Node], value: str | None = None) -> str:
        given: str | None = event.tag
        return self._loader.resolve(kind, value, event.implicit) if given in {None, "!"} else str(given)

    def _check_key(self, key: yaml.Node) -> None:
        if isinstance(key, yaml.ScalarNode) and len(key.value) > LONGEST_KEY:
            found = f"a key of {len(key.value)} characters"
            raise _TooMuchError(key.start_mark.line + 1, found, f"at most {LONGEST_KEY}")

    def _count(self, event: Any, values: int, characters: int) -> None:
        self._values += values
        self._characters += characters
        line, written_out = event.start_mark.line + 1, "with its aliases written out"
        if self._values > MOST_VALUES * self._room:
            raise _TooMuchError(line, f"more than {MOST_VALUES} values {written_out}", "a smaller file")
        if self._characters > LARGEST_FILE * self._room:
            found = f"more than {LARGEST_FILE} characters {written_out}"
            raise _TooMuchError(line, found, "a smaller file")
