"""A script's start is told apart from its epochs, so that growth and `plan` know what a restart costs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from command_line import finish, start

from parsl_rasda.orchestration.events import EpochReported, StartJob
from parsl_rasda.orchestration.journal import read

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
# It notes when its first epoch begins, which nobody but this test reads.
SCRIPT = """\
sleep 1.5
date +%s.%N > "$(dirname "$4")/began.txt"
for epoch in $(seq $(($1 + 1)) $2); do sleep 0.8; done
printf '{"loss": %s}' "$3" > "$4"
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
    restarts, epochs = measured(tmp_path / "run")
    assert plan["restart_s"] == pytest.approx(statistics.fmean(restarts), rel=0.2)
    assert plan["epoch_s"] == pytest.approx(0.8, rel=0.35)
    assert len(epochs) > len(restarts), "some stretches have several epochs"


def measured(run: Path) -> tuple[list[float], list[int]]:
    """Return how long each attempt took to its first epoch [s], and the epochs that were trained."""
    restarts, epochs, since = [], list[int](), {}
    for record in read(run / "journal.jsonl"):
        event = record.event
        if isinstance(event, EpochReported):
            began = next((run / "trials").glob(f"{event.job.trial}/attempt-{event.job.attempt}/began.txt"))
            restarts.append(float(began.read_text()) - since[event.job][0])
            epochs += range(since[event.job][1], event.epoch)
        for told in record.instructions:
            if isinstance(told, StartJob):
                since[told.job] = (event.at, told.epoch)
    return restarts, epochs
