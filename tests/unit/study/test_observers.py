"""`track` and `notify` of a study: short forms, mistakes in words, and what a run keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study import StudySpec, declare_study, dump_study, load_study

TUNE = {
    "metric": "loss",
    "num_samples": 2,
    "scheduler": {"max_t": 2},
    "search_space": {"lr": {"float": [0.1, 1.0]}},
    "training": {"command": ["true"]},
}


def study(**more: Any) -> StudySpec:
    return declare_study({"name": "s", "tune": TUNE, **more}, "Study")


def test_short_forms_are_written_out_and_read_back(tmp_path: Path) -> None:
    spec = study(
        track=[
            "tensorboard",
            {"tensorboard": "logs"},
            {"mlflow": "http://there"},
            {"wandb": {"project": "p"}},
        ],
        notify={"command": "mail -s '{event} of {study}' me@there"},
    )
    assert [(t.kind, t.uri, t.project) for t in spec.track] == [
        ("tensorboard", None, None),
        ("tensorboard", "logs", None),
        ("mlflow", "http://there", None),
        ("wandb", None, "p"),
    ]
    (tmp_path / "study.yaml").write_text(dump_study(spec))
    assert load_study(tmp_path / "study.yaml", check_targets=False, is_copy=True) == spec


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"track": ["tensorbord"]}, "tensorboard"),
        ({"track": [{"mlflow": "x", "wandb": {}}]}, "track.0"),
        ({"track": [{"wandb": {"project": "p", "mode": "quiet"}}]}, "offline"),
        ({"track": [{"mlflow": {"project": "p"}}]}, "project, of mlflow"),
        ({"track": [{"wandb": "p"}]}, "uri, of wandb"),
        ({"track": [7]}, "track.0"),
        ({"notify": {"command": ["mail", "{trial}"]}}, "{trial}"),
        ({"notify": {"command": ["mail"], "on": ["always"]}}, "trouble"),
        ({"notify": {}}, "notify.command"),
    ],
)
def test_mistakes_are_told_in_words(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidFileError) as wrong:
        study(**more)
    assert words in str(wrong.value)
