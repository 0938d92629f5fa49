"""HTML and SVG whose text is always escaped: what comes from a user stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from html import escape
from typing import TypeAlias

_EMPTY = {"meta", "path", "rect", "circle", "line"}  # elements that have no children here
# Not allowed in a page; causes of failures may hold a terminal's colours.
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already; any other string is escaped wherever it is put."""

    __slots__ = ()


Child: TypeAlias = Markup | str | int | float | None


def element(_name: str, *children: Child, **attributes: str | float | None) -> Markup:
    """Return an element; None is left out, of children and of attributes.

    Args:
        _name: Its tag.
        children: Elements, or text, which is escaped.
        attributes: ``class_`` means ``class``, ``data_trial`` means ``data-trial``.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if _name in _EMPTY:
        return Markup(f"<{_name}{written}/>")
    return Markup(f"<{_name}{written}>{join(*children)}</{_name}>")


def join(*children: Child, between: str = "") -> Markup:
    """Return children one after the other, text escaped."""
    return Markup(between.join(escaped(child) for child in children if child is not None))


def escaped(child: Child) -> str:
    """Return markup as it is, and anything else as text that a page can hold."""
    return child if isinstance(child, Markup) else escape(_CONTROL.sub(_shown, str(child)))


def chapter(title: str, *content: Child, note: str = "") -> Markup:
    """Return a part of a section under a heading, with a remark below."""
    return join(element("h3", title), *content, element("p", note, class_="note") if note else None)


def table(names: Sequence[str], rows: Iterable[Markup], numeric: AbstractSet[str] = frozenset()) -> Markup:
    """Return rows under a heading; those of numbers are aligned at the right."""
    heads = (element("th", n, scope="col", class_="number" if n in numeric else None) for n in names)
    return element("table", element("thead", element("tr", *heads)), element("tbody", *rows))


def copied(text: str) -> Markup:
    """Return a text with a button that copies it."""
    button = element("button", "copy", type="button")
    return element("div", button, element("pre", text.rstrip("\n")), class_="copied")


def state_word(state: str) -> Markup:
    """Return a state in its colour."""
    return element("span", state.replace("_", " "), class_=f"state {state}")


def _shown(found: re.Match[str]) -> str:
    return "" if found[0].startswith("\x1b") else "\N{REPLACEMENT CHARACTER}"
