"""What a confirmation has come to, in words and as the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parsl_rasda.reporting.format import counted, number, percent

COLUMNS = ("candidate", "search", "mean", "spread", "runs", "chance")


def confirmation_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row a candidate: what the search found, mean and spread over seeds, chance to be best."""
    for row in found["candidates"]:
        seeds = len(row["results"])
        chance = "" if row["chance"] is None else percent(row["chance"])
        cells = (number(row["searched"]["metric"]), number(row["mean"]), number(row["spread"]))
        yield (row["trial"], *cells, f"{seeds} of {found['seeds']}", chance)


def confirmation_sentence(found: Mapping[str, Any]) -> str:
    """Return how the confirmation stands and what it changes, with mean and spread of the winner."""
    seeds = counted(found["seeds"], "new seed")
    best, winner = found["candidates"][0]["trial"], found["winner"]
    if winner is None:
        words = {"running": "goes on", "done": "has no result"}.get(found["state"], "has not come to its end")
        return f"confirmation with {seeds} each {words}: the best is that of the search"
    is_same = winner == best
    said = "stays the best" if is_same else f"is better than {best}, the best of the search"
    return f"confirmed with {seeds} each: trial {winner} {said} ({_mean_of(found, winner)})"


def _mean_of(found: Mapping[str, Any], winner: str) -> str:
    row = next(row for row in found["candidates"] if row["trial"] == winner)
    spread = "" if row["spread"] is None else f", spread {number(row['spread'])}"
    return f"mean {number(row['mean'])}{spread}"


def confirmation_notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the test metric of each candidate, and the runs that have failed."""
    for row in found["candidates"]:
        if (test := row["test"]) is not None:
            spread = "" if test["spread"] is None else f", spread {number(test['spread'])}"
            runs = counted(test["n"], "run")
            yield f"test metric of trial {row['trial']}: mean {number(test['mean'])}{spread}, {runs}"
        yield from (f"run {r['run']} failed: {r['reason']}" for r in row["runs"] if r["state"] == "failed")
