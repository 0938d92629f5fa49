"""Draw the pictures of docs/method.md: rungs, replicas, and the world size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "pictures"
_BLUE, _ORANGE, _GREY, _TEXT = "#3949ab", "#ef6c00", "#cfd8dc", "#37474f"
_WIDTH = 640
# Epochs and final losses of eight trials; one in two passes each rung.
_MILESTONES = (1, 2, 4, 8)
_REACHED = (8, 4, 2, 2, 1, 1, 1, 1)


def pictures() -> dict[Path, str]:
    """Return the text of each picture."""
    drawn = {"rungs": rungs(), "replicas": replicas(), "world_size": world_size()}
    return {FOLDER / f"{name}.svg": text for name, text in drawn.items()}


def rungs() -> str:
    """Return who goes on at which rung: bars as long as trials train, as thick as their replicas."""
    left, scale, parts = 70, 66, []
    for k, milestone in enumerate(_MILESTONES):
        x = left + milestone * scale
        parts += [
            _line(x, 24, x, 276, dashed=True),
            _text(x, 16, f"rung {k}" if k < 3 else "max_t", "middle"),
        ]
        parts.append(_text(x, 294, f"{milestone}", "middle"))
    parts.append(_text(left, 294, "epochs", "end"))
    for number, reached in enumerate(_REACHED):
        y, before = 32 + 31 * number, 0
        parts.append(_text(left - 8, y + 12, f"trial {number + 1}", "end"))
        for k, milestone in enumerate(m for m in _MILESTONES if m <= reached):
            height = 4 + 3 * 2**k if k else 6
            x = left + before * scale
            colour = _ORANGE if reached == _MILESTONES[-1] else _BLUE
            parts.append(_box(x, y + 8 - height / 2, (milestone - before) * scale - 2, height, colour))
            before = milestone
    return _svg(
        300, parts, "Eight trials; half of them stop at each rung, the others go on with more replicas"
    )


def replicas() -> str:
    """Return how the batch of a step grows with the replicas."""
    parts = []
    for row, count in enumerate((1, 2, 4, 8)):
        y = 20 + row * 52
        parts.append(_text(118, y + 21, f"{count} replica{'s' if count > 1 else ''}", "end"))
        for number in range(count):
            parts += [_box(130 + number * 44, y, 40, 32, _BLUE)]
            parts.append(_text(150 + number * 44, y + 21, "16", "middle", "#ffffff"))
        parts.append(_text(130 + count * 44 + 8, y + 21, f"= {16 * count} samples a step", "start"))
    return _svg(228, parts, "A step of 1, 2, 4 and 8 replicas of 16 samples each", width=650)


def world_size() -> str:
    """Return how four replicas are carried by one, two and four GPUs."""
    parts, x = [], 16.0
    for gpus in (1, 2, 4):
        each = 4 // gpus
        width = gpus * 46 + 12
        parts.append(_text(x + width / 2, 20, f"{gpus} GPU{'s' if gpus > 1 else ''}", "middle"))
        for gpu in range(gpus):
            left = x + 6 + gpu * 46
            parts.append(_box(left, 32, 40, 4 * 34 + 6, _GREY))
            for turn in range(each):
                parts.append(_box(left + 5, 38 + turn * 34, 30, 28, _BLUE))
                parts.append(
                    _text(left + 20, 57 + turn * 34, f"{gpu * each + turn + 1}", "middle", "#ffffff")
                )
        parts.append(_text(x + width / 2, 196, f"{each} in turn" if each > 1 else "at once", "middle"))
        x += width + 70
    parts.append(
        _text(
            16, 222, "Time goes down; the numbers are replicas. The sum of their gradients is the same bits."
        )
    )
    return _svg(234, parts, "Four replicas on one GPU in turn, on two GPUs, and on four at once")


def _svg(height: int, parts: Sequence[str], title: str, width: int = _WIDTH) -> str:
    return "\n".join(_lines(width, height, parts, title)) + "\n"


def _lines(width: int, height: int, parts: Sequence[str], title: str) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    yield f'  font-size="13" role="img"><title>{title}</title>'
    yield from (f"  {part}" for part in parts)
    yield "</svg>"


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    size = f'width="{width:g}" height="{height:g}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} rx="2" fill="{colour}"/>'


def _line(x: float, y: float, to_x: float, to_y: float, *, dashed: bool) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="#90a4ae"{dash}/>'


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = _TEXT) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{words}</text>'
