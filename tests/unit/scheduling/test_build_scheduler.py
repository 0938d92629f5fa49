from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import parsl_rasda.scheduling as chapter
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.scheduling import build_scheduler


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(chapter).failed == 0
    assert doctest.testmod(chapter).attempted == 3


def test_rasda_doubles_the_replicas_and_asha_keeps_them() -> None:
    block = {"scaling_factor": 2, "num_workers": 2, "max_t": 4}
    assert [build_scheduler({"kind": "rasda", **block}).replicas(k) for k in range(3)] == [2, 4, 8]
    assert [build_scheduler({"kind": "asha", **block}).replicas(k) for k in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"variant": "hyperband"},
            "scheduler.variant: found 'hyperband'; allowed: stopping, promotion, sync",
        ),
        ({"mode": "lowest"}, "scheduler.mode: found 'lowest'; allowed: min, max"),
        ({"eta": 2}, "scheduler.eta: found 2; allowed: no such key; kind, variant, mode"),
        ({"num_samples": 0}, "scheduler.num_samples: found 0; allowed: an integer of at least 1"),
        ({"kind": "pbt"}, "scheduler.kind: found 'pbt'; allowed: rasda, asha"),
        ({"kind": ["asha"]}, "scheduler.kind: found"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_is_allowed(settings, message) -> None:
    with pytest.raises(InvalidSettingError) as error:
        build_scheduler(settings)
    assert str(error.value).startswith(message)


@pytest.fixture
def installed_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package, as far as importlib.metadata can tell, that offers a scheduler."""
    (tmp_path / "their_scheduler.py").write_text(
        "from parsl_rasda.scheduling import build_scheduler\n"
        "def build(settings):\n"
        "    return build_scheduler({**settings, 'kind': 'asha', 'max_t': 3})\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[parsl_rasda.schedulers]\ntheirs = their_scheduler:build\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed_plugin")
def test_another_kind_comes_from_an_installed_package() -> None:
    assert build_scheduler({"kind": "theirs", "grace_period": 1}).milestones == (1, 2, 3)


@pytest.mark.usefixtures("installed_plugin")
def test_the_error_for_an_unknown_kind_lists_the_plugins_too() -> None:
    with pytest.raises(InvalidSettingError, match="allowed: rasda, asha, theirs"):
        build_scheduler({"kind": "pbt"})
