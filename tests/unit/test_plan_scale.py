"""The claims of `benchmarks/plan_scale.py`: they are of seconds of a core, whatever else the machine does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
try:
    from plan_scale import claims_of
finally:
    sys.path.remove(str(BENCHMARKS))


def test_the_time_that_a_busy_machine_took_is_not_claimed() -> None:
    kept = json.loads((BENCHMARKS / "results" / "plan_scale.json").read_text())
    assert claims_of(kept["rows"]) == kept["claims"]
    slow = [{**row, "wall_s": 10 * row["wall_s"]} for row in kept["rows"]]
    assert claims_of(slow) == kept["claims"]
    slow = [{**row, "processor_s": 10 * row["processor_s"]} for row in kept["rows"]]
    assert [*claims_of(slow).values()].count(False) == 3
