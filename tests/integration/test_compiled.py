"""Compiled models give the same bits at any width, and say when nothing was compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_launch import finished, metrics_of, mpi_command, rank_command, report_of, written_order
from width_cases import differing, final_state

from parsl_rasda.protocol import Training
from parsl_rasda.types import Outcome

pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(300)]


def trained(directory, world_size, **changes):
    order = written_order(
        directory,
        world_size=world_size,
        until=2,
        training=Training(batch_size=8, clip_norm=1.0, compile=True),
        **changes,
    )
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(directory.parent / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = mpi_command(order) if world_size > 1 else rank_command(order)
    status, errors = finished(command, cache, patience_s=240)
    assert status == 0, errors
    assert report_of(order).outcome is Outcome.REACHED
    return order, errors


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_compiled_model_trains_to_the_same_bits_on_one_rank_and_on_two(tmp_path) -> None:
    alone, errors = trained(tmp_path / "1", 1)
    assert "compiled nothing" not in errors
    compiled = files_of(tmp_path / "cache")
    assert compiled
    two, _ = trained(tmp_path / "2", 2)
    assert files_of(tmp_path / "cache") == compiled, "another start compiles nothing again"
    assert metrics_of(alone) == metrics_of(two)
    assert differing(final_state(alone), final_state(two)) == []
    plain = written_order(tmp_path / "plain", until=2, training=Training(batch_size=8, clip_norm=1.0))
    assert finished(rank_command(plain))[0] == 0
    assert metrics_of(plain) != metrics_of(alone), "else nothing was compiled"


def test_a_model_of_which_nothing_can_be_compiled_is_named(tmp_path) -> None:
    _, errors = trained(tmp_path / "it", 1, config={"lr": 0.02, "uncompilable": True})
    assert "training.compile: torch compiled nothing of Sequential" in errors
