"""The methods paragraph of studies that have their batch, growth, method or trials otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from parsl_rasda.orchestration.events import TrialProposed
from parsl_rasda.orchestration.journal import Record
from parsl_rasda.reporting.methods import methods_text
from parsl_rasda.reporting.runs import read_run


@pytest.mark.parametrize(
    ("scheduler", "changes", "words", "never"),
    [
        (
            {"batch": "constant"},
            {},
            ("each trial had 4 data-parallel replicas, on 1 to 4 slots", "at most 32 samples in all"),
            "grew",
        ),
        (
            {"batch": "measured", "num_workers": 2},
            {},
            (
                "each trial had 4 data-parallel replicas, on 2 to 4 slots",
                "at most 2 x 32 samples at the start of a trial, and more as far as the noise scale of its",
            ),
            "grew",
        ),
        ({"growth": "none"}, {}, ("from 1 to at most 4, on 1 slot (growth: none)",), "1 to 4"),
        (
            {"kind": "asha"},
            {},
            (
                "tuned by ASHA (arXiv:1810.05934; variant",
                "each trial had 1 data-parallel replica, on 1 slot.",
            ),
            "doi",
        ),
        ({"reduction_factor": 8}, {}, ("after 1 epoch, where one in 8 went on",), "epochs, where"),
        ({"grace_period": 8}, {}, ("judged by val_loss (smaller is better); each trial had 1",), "where one"),
        (
            {},
            {
                "search_space": {"lr": {"float": [0.001, 0.1]}, "batch": {"choice": [16, 32]}},
                "training": {"python": "workflows.emulated.train:train", "batch_size": "batch"},
            },
            ("A step had at most `batch` samples a replica",),
            "as many",
        ),
        (
            {},
            {"stop_when": {"no_improvement": 2}, "num_samples": 40},
            ("5 configurations came from the random searcher",),
            "40 configurations",
        ),
    ],
)
def test_the_methods_say_what_a_study_has_otherwise(
    scheduler: Any, changes: Any, words: tuple[str, ...], never: str, rehearsals: Any, tmp_path: Path
) -> None:
    config = {"lr": 0.01, "optimizer": "sgd", "batch": 16}
    study = rehearsals.study_of(scheduler=scheduler, **changes)
    rehearsals.into(tmp_path, study, config_of=lambda trial: config)
    run = read_run(tmp_path)
    text = methods_text(run, "tune", run.summaries()["tune"])
    for said in words:
        assert said in text
    assert never not in text


def test_the_methods_count_what_the_user_has_added(rehearsals: Any, tmp_path: Path) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of())
    run = read_run(tmp_path)
    history = run.searches["tune"]
    first = next(i for i, r in enumerate(history.records) if isinstance(r.event, TrialProposed))
    records = list(history.records)
    records[first] = Record(structs.replace(records[first].event, told=1), records[first].instructions)
    run = replace(run, searches={"tune": replace(history, records=records)})
    text = methods_text(run, "tune", run.summaries()["tune"])
    assert "7 configurations came from the random searcher" in text
    assert "1 more came from the user" in text
