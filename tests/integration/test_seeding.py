"""A training function starts in the same random state, whoever has loaded what before it."""

from __future__ import annotations

import subprocess
import sys

import pytest

DRAW = "print(random.random(), numpy.random.random(), torch.rand(()).item(), torch.get_num_threads())"
STARTS = {
    "all loaded before, as in a forked rank": "import numpy, torch\nseed_start(7)",
    "torch loaded by the function": "seed_start(7)\nimport torch, numpy",
    "NumPy before, torch in the function": "import numpy\nseed_start(7)\nimport torch",
    "torch by another module": "seed_start(7)\nimport torch.nn\nimport numpy",
    "seeded twice": "seed_start(3)\nimport numpy\nseed_start(7)\nimport torch",
}


def run(*lines: str) -> str:
    code = "\n".join(
        ("import random, sys", "from parsl_rasda.runtime.engine.seeding import seed_start", *lines)
    )
    return subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def drawn():
    return {name: run(start, DRAW) for name, start in STARTS.items()}


def test_the_order_of_imports_changes_no_random_number(drawn) -> None:
    assert len(set(drawn.values())) == 1, drawn


def test_nothing_is_loaded_only_to_be_seeded() -> None:
    assert run("seed_start(7)", "print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False\n"


def test_nobody_is_left_on_the_import_path_after_the_import() -> None:
    lines = ("before = list(sys.meta_path)", "seed_start(7)", "import torch")
    found = run(*lines, "print(sys.meta_path == before)")
    assert found == "True\n"


def test_an_import_that_fails_is_seeded_when_it_works(tmp_path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('broken')")
    lines = (
        "seed_start(7)",
        f"sys.path.insert(0, {str(tmp_path)!r})",
        "try:\n    import numpy\nexcept ImportError:\n    sys.path.pop(0)",
        "import numpy, torch",
    )
    assert run(*lines, DRAW) == run("import numpy, torch", "seed_start(7)", DRAW)
