"""The chart of who held which slots when: a row a slot, a bar a job, pale where a slot was idle.

A trial that grows becomes a taller bar; the tail of a search shows as pale rows at its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from parsl_rasda.reporting.charts import WIDTH, Chart, Shape, Summary, chart, fate, rounded, shape
from parsl_rasda.reporting.format import counted, duration, truncated
from parsl_rasda.reporting.occupancy import JobSpan, Occupancy, PilotSpan, Slot
from parsl_rasda.reporting.scales import Scale, time_ticks

Rows: TypeAlias = Mapping[Slot, int]

_TALLEST, _TALL = 28, 560  # a row, and all of them [px]
_LABELLED = 9.0  # a row that has room for words [px]
_LEFT, _RIGHT, _TOP, _BOTTOM = 110, 16, 8, 26
_LETTER = 6.6  # [px]
_LINED = 3.0  # a node that is worth a line above it [px]
_NAMED = 4  # nodes of a job that are named


def slots_over_time(
    summary: Summary, occupancy: Occupancy, span_s: float, *, width: int = WIDTH
) -> Chart | None:
    """Return the chart; None if no slot was ever held.

    Args:
        summary: The JSON document of the search.
        occupancy: Who held what; closed.
        span_s: Of the time axis [s].
        width: Of the chart [px].
    """
    slots = occupancy.slots
    if not slots or span_s <= 0:
        return None
    rows = {slot: i for i, slot in enumerate(slots)}
    row = min(_TALLEST, _TALL / len(slots))
    height = _TOP + row * len(slots) + _BOTTOM
    x = Scale(0.0, span_s, _LEFT, width - _RIGHT)
    trials = {t["trial"]: t for t in summary["trial_list"]}
    shapes = [bar for span in occupancy.pilots for bar in _pilot_bars(span, rows, x, row)]
    shapes += _time_axis(x, span_s, height)
    for span in occupancy.jobs:
        shapes += _job_bars(span, _fate(trials.get(span.job.trial), summary), rows, x, row)
    shapes += _node_names(slots, row, width)
    for at in occupancy.resumed:
        line = f"M{rounded(x(at))} {_TOP}V{rounded(height - _BOTTOM)}"
        shapes.append(shape("path", class_="resumed", d=line))
    return chart(width, height, "Which trial held which GPUs when", shapes)


def _fate(trial: Summary | None, summary: Summary) -> str:
    """Return the classes of a job's bar; a run of the confirmation is no trial of the search."""
    return "confirmation" if trial is None else fate(trial, summary["best"])


def _pilot_bars(span: PilotSpan, rows: Rows, x: Scale, row: float) -> Iterator[Shape]:
    for first, count in _stretches(rows[slot] for slot in span.slots):
        yield _bar(x, span.begin, span.end, first, count, row, class_="held")


def _job_bars(span: JobSpan, fates: str, rows: Rows, x: Scale, row: float) -> Iterator[Shape]:
    """Yield a bar for each block of neighbouring rows; the time before its first epoch is hatched over."""
    note = f"attempt {span.job.attempt} on {_placed(span)}: {duration(span.begin)} to {duration(span.end)}"
    note += f", {truncated(span.ending, 120)}" if span.ending else ""
    begun = span.end if span.trained_from is None else span.trained_from
    for first, count in _stretches(rows[slot] for slot in span.slots):
        yield _bar(
            *(x, span.begin, span.end, first, count, row),
            class_=f"job {fates}",
            data_trial=span.job.trial,
            data_note=note,
        )
        if x(begun) - x(span.begin) >= 1:
            yield _bar(x, span.begin, begun, first, count, row, class_="starting")
        room = x(span.end) - x(begun)
        if row * count >= _LABELLED and room >= _LETTER * len(span.job.trial) + 4:
            middle, y = rounded(x(begun) + room / 2), rounded(_TOP + row * (first + count / 2))
            who = {"class_": f"who {fates}", "x": middle, "y": y, "dy": "0.35em", "text_anchor": "middle"}
            yield shape("text", span.job.trial, **who)


def _bar(x: Scale, begin: float, end: float, first: int, count: int, row: float, **attributes: str) -> Shape:
    left, top = x(begin), _TOP + row * first
    gap = min(1.0, row / 8)
    return shape(
        "rect",
        x=rounded(left),
        y=f"{top:.2f}",
        width=f"{max(0.3, x(end) - left):.1f}",
        height=f"{row * count - gap:.2f}",
        **attributes,
    )


def _time_axis(x: Scale, span_s: float, height: float) -> Iterator[Shape]:
    for at, label in time_ticks(span_s, 9 if x.stop > WIDTH / 2 else 4):
        place = rounded(x(at))
        yield shape("path", class_="grid", d=f"M{place} {_TOP}V{rounded(height - _BOTTOM + 4)}")
        yield shape("text", label, class_="tick", x=place, y=rounded(height - 8), text_anchor="middle")


def _node_names(slots: Sequence[Slot], row: float, width: int) -> Iterator[Shape]:
    """Yield a line above each node, its name and the number of each slot, where there is room for them."""
    if row >= _LABELLED:
        for i, (_, _, gpu) in enumerate(slots):
            middle = rounded(_TOP + row * (i + 0.5))
            yield shape(
                "text", str(gpu), class_="tick", x=_LEFT - 5, y=middle, dy="0.35em", text_anchor="end"
            )
    several = len({site for site, _, _ in slots}) > 1
    nodes: list[tuple[str, int, int]] = []
    for (site, node), group in itertools.groupby(enumerate(slots), key=lambda s: s[1][:2]):
        places = [i for i, _ in group]
        nodes.append((f"{site} {node}" if several else node, places[0], len(places)))
    free_from = 0.0
    for name, first, count in nodes:
        top = _TOP + row * first
        if first and row * count >= _LINED:
            yield shape("path", class_="node", d=f"M4 {rounded(top)}H{width - _RIGHT}")
        if row * count / 2 + top - 6 >= free_from:
            y = top + row * count / 2
            free_from = y + 6
            yield shape("text", _fitting(name), class_="tick", x=4, y=rounded(y), dy="0.35em")


def _fitting(name: str) -> str:
    """Return a node's name with its end, which tells nodes apart."""
    most = 12  # beside the numbers of slots
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _placed(span: JobSpan) -> str:
    nodes = span.placement.nodes
    words = [f"{n.node}:{','.join(map(str, n.gpus))}" for n in nodes[:_NAMED]]
    words += [f"and {len(nodes) - _NAMED} nodes more"] if len(nodes) > _NAMED else []
    return f"{counted(span.placement.world_size, 'GPU')} ({' '.join(words)})"


def _stretches(rows: Iterator[int] | Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first row and length of each block of neighbouring rows."""
    for _, block in itertools.groupby(enumerate(sorted(rows)), key=lambda p: p[1] - p[0]):
        found = [r for _, r in block]
        yield found[0], len(found)
