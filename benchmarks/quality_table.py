"""What the parts of `quality.py` come to together: medians, bootstrap intervals, and a figure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURES = ("validation", "test", "epochs", "steps", "gpu_s", "makespan_16_s", "gpu_hours_16")
RESAMPLES = 4000
LEVEL = 0.95


def tabulated(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by study and arm the median of each figure, and of its ratio to ASHA's of the same seed."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for study in sorted({p["study"] for p in parts}):
        asha = {p["seed"]: p for p in parts if (p["study"], p["arm"]) == (study, "asha")}
        for arm in dict.fromkeys(p["arm"] for p in parts if p["study"] == study):
            rows = [p for p in parts if (p["study"], p["arm"]) == (study, arm)]
            tables.setdefault(study, {})[arm] = {
                **{key: spread([p[key] for p in rows if p[key] is not None]) for key in FIGURES},
                **{f"{key}_to_asha": spread(ratios(rows, asha, key)) for key in FIGURES},
            }
    return tables


def ratios(rows: Sequence[Mapping[str, Any]], asha: Mapping[int, Mapping[str, Any]], key: str) -> list[float]:
    """Return a figure of each part, relative to ASHA's with the same seed, where both are there."""
    pairs = ((row[key], asha[row["seed"]][key]) for row in rows if row["seed"] in asha)
    return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Return the median of some values and its bootstrap interval; None without any."""
    if not values:
        return None
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = round(RESAMPLES * (1 - LEVEL) / 2)
    return {
        "median": statistics.median(values),
        "low": medians[cut],
        "high": medians[-1 - cut],
        "seeds": len(values),
    }


def as_markdown(tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the medians as a table for `docs/quality.md`: figures of ASHA, and ratios to it by seed."""
    keys = ("validation", "test", "steps", "makespan_16_s")
    lines = [
        "| study | arm | seeds | validation | test | steps | makespan |",
        "|---|---|---|---|---|---|---|",
    ]
    for study, arms in tables.items():
        for arm, row in arms.items():
            found = [row[key] if arm == "asha" else row[f"{key}_to_asha"] for key in keys]
            cells = [_cell(spread, is_ratio=arm != "asha") for spread in found]
            lines.append(f"| {study} | {arm} | {row['validation']['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(spread: Mapping[str, Any] | None, *, is_ratio: bool) -> str:
    if spread is None:
        return "-"
    if not is_ratio:
        return f"{spread['median']:.3g}"
    around = f" ({spread['low']:.2f} to {spread['high']:.2f})" if spread["seeds"] > 1 else ""
    return f"x {spread['median']:.2f}{around}"


def drawn(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Draw test metric and emulated makespan of each arm, relative to ASHA's: left and below is better."""
    from matplotlib.figure import Figure

    tables = {
        s: arms for s, arms in tables.items() if any(row["makespan_16_s_to_asha"] for row in arms.values())
    }
    figure = Figure(figsize=(4 * max(1, len(tables)), 4), layout="constrained")
    axes = figure.subplots(1, max(1, len(tables)), squeeze=False)[0]
    for axis, (study, arms) in zip(axes, tables.items(), strict=False):
        for arm, row in arms.items():
            x, y = row["makespan_16_s_to_asha"], row["test_to_asha"]
            if x is None or y is None:
                continue
            axis.errorbar(
                x["median"],
                y["median"],
                xerr=[[x["median"] - x["low"]], [x["high"] - x["median"]]],
                yerr=[[y["median"] - y["low"]], [y["high"] - y["median"]]],
                fmt="o",
                capsize=2,
                label=f"{arm} ({y['seeds']})",
            )
        axis.axhline(1, color="grey", linewidth=0.5)
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.set(title=study, xlim=(0, None), ylim=(0, None))
        axis.set(xlabel="makespan / ASHA's", ylabel="test metric / ASHA's")
        axis.legend(fontsize="x-small", title="arm (seeds)")
    figure.savefig(path)
