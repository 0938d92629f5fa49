"""Renders the templates in `page/`; text from users is escaped wherever a template puts it."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from parsl_rasda.reporting.format import counted, duration, number, percent, value_text

# Not allowed in a page; causes of failures may hold the colours of a terminal.
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_TEMPLATES = Environment(
    loader=PackageLoader("parsl_rasda.reporting", "page"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {f.__name__: f for f in (counted, duration, number, percent, value_text)}


def render(template: str, **values: Any) -> str:  # Any: whatever a template shows
    """Return a filled template without control characters."""
    return _CONTROL.sub(_visible, _TEMPLATES.get_template(template).render(values))


def _visible(found: re.Match[str]) -> str:
    return "" if found[0].startswith("\x1b") else "\N{REPLACEMENT CHARACTER}"
