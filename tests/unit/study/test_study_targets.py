from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parsl_rasda.study_code.targets import Signature, TargetError, signature_of


@pytest.fixture
def code(tmp_path: Path) -> Path:
    package = tmp_path / "code_for_targets"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from .deep import renamed\nfrom code_for_targets.steps import simulate\n"
    )
    (package / "deep" / "__init__.py").write_text(
        "from ..steps import prepare as renamed\nfrom .nowhere import lost\n"
    )
    (package / "steps.py").write_text(
        "raise RuntimeError('nobody may run this')\n"
        "def simulate(grid, *, seed=0): ...\n"
        "def prepare(fields, directory, **more): ...\n"
        "@decorated\ndef wrapped(x): ...\n"
        "async def later(x): ...\n"
        "made = make()\n"
        "limit: int = 3\n"
        "def stream(x):\n    yield x\n"
        "def holds(x):\n    def inner(y):\n        yield y\n    return list(inner(x))\n"
        "class Step:\n    def __init__(self, a, b=1): ...\n"
        "try:\n    def guarded(x): ...\nexcept ImportError:\n    guarded = None\n"
    )
    (package / "broken.py").write_text("def f(:\n")
    (package / "open.py").write_text("from somewhere import *\n")
    (tmp_path / "spaces_for_targets" / "of" / "names").mkdir(parents=True)
    (tmp_path / "spaces_for_targets" / "of" / "names" / "steps.py").write_text("def simulate(grid): ...\n")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "signature"),
    [
        ("code_for_targets.steps:simulate", Signature(("grid", "seed"), ("grid",), positional=1)),
        ("code_for_targets:simulate", Signature(("grid", "seed"), ("grid",), positional=1)),
        (
            "code_for_targets:renamed",
            Signature(("fields", "directory"), ("fields", "directory"), takes_any=True, positional=2),
        ),
        ("code_for_targets.steps:Step", Signature(("a", "b"), ("a",), positional=2)),
        ("code_for_targets.steps:wrapped", None),
        ("code_for_targets.steps:made", None),
        ("code_for_targets.steps:guarded", None),
        ("code_for_targets.steps:holds", Signature(("x",), ("x",), positional=1)),
        ("code_for_targets.open:anything", None),
        ("spaces_for_targets.of.names.steps:simulate", Signature(("grid",), ("grid",), positional=1)),
        ("math:sqrt", None),
        ("sys:exit", None),
        ("torch._C:whatever", None),
    ],
)
def test_a_signature_is_told_from_the_source(code: Path, target: str, signature: Signature | None) -> None:
    loaded = set(sys.modules)
    assert signature_of(target, [code]) == signature
    assert not {m for m in set(sys.modules) - loaded if m.startswith(("code_for_targets", "torch"))}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("code_for_targets.steps:simulat", "(did you mean simulate?)"),
        (
            "code_for_targets.stepz:simulate",
            "code_for_targets has no stepz; allowed: a module of code_for_targets: broken",
        ),
        ("code_for_target:simulate", "no module code_for_target"),
        ("code_for_targets.steps.simulate:x", "code_for_targets.steps is not a package"),
        ("code_for_targets.broken:f", "broken.py:1: "),
        ("code_for_targets.steps:later", "async function"),
        ("code_for_targets.steps:stream", "which is a generator; allowed: a function that returns"),
        ("code_for_targets.steps:limit", "which is a constant; allowed: a function"),
        ("code_for_targets.deep:lost", "code_for_targets.deep has no nowhere"),
    ],
)
def test_a_target_that_cannot_be_says_why(code: Path, target: str, words: str) -> None:
    with pytest.raises(TargetError) as error:
        signature_of(target, [code])
    assert words in f"{error.value.found}; allowed: {error.value.allowed}"


def test_parsls_own_providers_are_read_without_importing_parsl() -> None:
    slurm = signature_of("parsl.providers:SlurmProvider", ())
    assert slurm is not None
    assert {"partition", "account", "walltime", "worker_init", "scheduler_options"} <= set(slurm.names)
