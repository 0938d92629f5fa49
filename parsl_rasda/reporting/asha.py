"""What ASHA would have taken instead, for every reader of a run: figures, a sentence, who held which GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parsl_rasda.orchestration.replay import ReplayedSearch
from parsl_rasda.orchestration.summary import summarise
from parsl_rasda.orchestration.usage import Usage
from parsl_rasda.reporting.format import counted, duration
from parsl_rasda.reporting.occupancy import Occupancy
from parsl_rasda.simulation.asha import rehearse_asha

_EQUAL = 0.01  # of the makespan: no rehearsal is that good
MOST_TRIALS = 2000  # each takes half a millisecond to rehearse, and `status` does so whenever it is asked


@dataclass(frozen=True, slots=True)
class AshaComparison:
    """A finished search beside ASHA.

    Attributes:
        document: ``makespan_s`` of ASHA, ``speedup`` over it, ``same_best``, ``unknown_epochs`` beyond where
            the run stopped trials, ``confirms`` if both have trained the best again, and ``faults`` of the
            run, which a rehearsal does not have.
        summary: The JSON document of ASHA's search, as rehearsed; smaller metrics are better there.
        occupancy: Who would have held which slots when; closed.
    """

    document: Mapping[str, Any]
    summary: Mapping[str, Any]
    occupancy: Occupancy


def compare_with_asha(history: ReplayedSearch) -> AshaComparison | None:
    """Return a search beside ASHA, or None if there is nothing to compare: see `rehearse_asha`.

    A search of very many trials is not compared either.
    """
    if len(history.machine.trials) > MOST_TRIALS:
        return None
    occupancy = Occupancy()
    asha = rehearse_asha(history, [occupancy])
    makespan_s = history.usage.makespan_s()
    if asha is None or makespan_s <= 0:
        return None
    occupancy.close()
    document = {
        "makespan_s": round(asha.makespan_s, 3),
        "speedup": round(asha.makespan_s / makespan_s, 4),
        "same_best": asha.has_same_best,
        "unknown_epochs": asha.unknown_epochs,
        "confirms": bool(asha.machine.confirmation.runs),
        "faults": len(history.usage.faults) + history.usage.preemptions,
    }
    return AshaComparison(document, summarise(history.study, asha.machine, Usage()), occupancy)


def asha_lines(asha: Mapping[str, Any], makespan_s: float) -> tuple[str, str]:
    """Return what ASHA would have come to, as a sentence without its subject, and where that is from.

    Args:
        asha: The `document` of a comparison.
        makespan_s: Of the run [s].
    """
    found = "found the same best in" if asha["same_best"] else "taken"
    said = f"would have {found} {duration(asha['makespan_s'])}, {how_much(asha, makespan_s)}"
    if not _is_equal(asha, makespan_s):
        is_faster = asha["makespan_s"] > makespan_s
        said += (
            f": RASDA was {'' if is_faster else 'slower, '}{asha['speedup']:.2f} x{' as fast' * is_faster}"
        )
    confirmed = ", its confirmation included" if asha.get("confirms") else ""
    without = f", without its {counted(asha['faults'], 'fault')}" if asha["faults"] else ""
    unknown = asha.get("unknown_epochs", 0)
    beyond = f": curves of {counted(unknown, 'epoch')} beyond a stop are unknown" if unknown else ""
    differs = "" if asha["same_best"] else f"; its best may differ{beyond}"
    return said, f"rehearsed with the times of this run{confirmed}{without}{differs}"


def how_much(asha: Mapping[str, Any], makespan_s: float) -> str:
    """Return by how much ASHA's time differs, in words; arguments are those of `asha_lines`."""
    same, later_s = asha["same_best"], asha["makespan_s"] - makespan_s
    if _is_equal(asha, makespan_s):
        return "as soon" if same else "as long"
    later, sooner = ("later", "sooner") if same else ("longer", "less")
    return f"{duration(abs(later_s))} {later if later_s > 0 else sooner}"


def _is_equal(asha: Mapping[str, Any], makespan_s: float) -> bool:
    return bool(abs(asha["makespan_s"] - makespan_s) <= _EQUAL * makespan_s)
