"""PNG of a picture that is SVG, where there is a library that draws it."""

from __future__ import annotations

_ZOOM = 3  # 1040 px wide charts become 3120, 300 dpi over the width of a page


def png(svg: str) -> bytes | None:
    """Return the PNG of an SVG, or None if `resvg-py` is not installed."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return None
    return bytes(svg_to_bytes(svg_string=svg, zoom=_ZOOM))


def draws_png() -> bool:
    """Whether there can be PNGs."""
    return png('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>') is not None
