"""A script's start is told apart from its epochs, so that growth and `plan` know what a restart costs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from command_line import finish, start

from parsl_rasda.orchestration.events import EpochReported, StartJob
from parsl_rasda.orchestration.journal import read
from parsl_rasda.types import JobId

pytestmark = [pytest.mark.parsl, pytest.mark.timeout(240)]

STUDY = """\
name: script
tune:
  metric: loss
  num_samples: 4
  scheduler: {max_t: 4, reduction_factor: 2, max_workers: 1, variant: synchronous}
  search_space: {lr: {float: [0.1, 1.0]}}
  training:
    command: >-
      sh train.sh {epoch} {until} {lr} {report}
  estimates: {epoch_s: 0.5, restart_s: 60.0}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: none\ngpus_per_node: 2\nmpi_launcher: process\n"
EPOCH_S = 0.8
SCRIPT = f"""\
sleep 4
for epoch in $(seq $(($1 + 1)) $2); do sleep {EPOCH_S}; done
printf '{{"loss": %s}}' "$3" > "$4"
"""


def test_what_plan_says_of_a_restart_is_what_restarts_of_a_script_took(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "train.sh").write_text(SCRIPT)
    code, _, errors = finish(
        start(tmp_path, "run", "study.yaml", "--site", "site.yaml", "--dir", "run", "--json")
    )
    assert code == 0, errors
    code, out, errors = finish(start(tmp_path, "plan", "study.yaml", "--from", "run", "--json"))
    assert code == 0, errors
    (plan,) = json.loads(out)["stages"]
    restarts = measured(tmp_path / "run")
    assert len(restarts) == 4 + 2 + 1
    assert plan["restart_s"] == pytest.approx(statistics.fmean(restarts), rel=0.2)
    assert plan["epoch_s"] < 2 * EPOCH_S, "its start is no part of it"


def measured(run: Path) -> list[float]:
    """Return what each attempt took besides its epochs [s], from its order to its report."""
    restarts, since = [], dict[JobId, tuple[float, int]]()
    for record in read(run / "journal.jsonl"):
        event = record.event
        if isinstance(event, EpochReported):
            at, epoch = since[event.job]
            restarts.append(event.at - at - (event.epoch - epoch) * EPOCH_S)
        for told in record.instructions:
            if isinstance(told, StartJob):
                since[told.job] = (event.at, told.epoch)
    return restarts
