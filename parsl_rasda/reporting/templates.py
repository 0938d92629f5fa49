"""Renders the templates in `page/`; text from users is escaped wherever a template puts it."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from parsl_rasda.plain_text import printable
from parsl_rasda.reporting.format import counted, duration, number, percent, value_text

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
    return printable(_TEMPLATES.get_template(template).render(values))
