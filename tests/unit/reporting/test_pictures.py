"""Pictures for papers have their colours in programs that know no variables of CSS, too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.cli.plan import plan
from parsl_rasda.reporting.files import write_report
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.study import dump_study

RASDA, ASHA = (194, 24, 107), (107, 114, 128)  # the lines of `plan`
BEST, STOPPED = RASDA, (163, 171, 181)
SITE = "provider: {type: LocalProvider}\ngpus_per_node: 4\n"


def colours_of(picture: Path) -> set[tuple[int, ...]]:
    """Return the colours of all pixels, as drawn without a browser."""
    resvg, image = pytest.importorskip("resvg_py"), pytest.importorskip("PIL.Image")
    drawn = image.open(io.BytesIO(bytes(resvg.svg_to_bytes(svg_path=str(picture)))))
    return {pixel[:3] for _, pixel in drawn.convert("RGBA").getcolors(1 << 24)}


def test_the_lines_of_a_plan_are_seen(rehearsals: Any, tmp_path: Path) -> None:
    study, site = tmp_path / "study.yaml", tmp_path / "quad.yaml"
    study.write_text(dump_study(rehearsals.study_of()))
    site.write_text(SITE)
    plan(study, [str(site)], nodes="1,2", figure=tmp_path / "sizes.svg", seeds=1)
    assert {RASDA, ASHA} <= colours_of(tmp_path / "sizes.svg")


def test_who_held_which_slots_is_seen(finished: Path) -> None:
    assert (finished / "asha.svg") in write_report(read_run(finished))
    assert {BEST, STOPPED} <= colours_of(finished / "asha.svg")
