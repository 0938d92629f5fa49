"""The random state in which a training function starts: the same however its process was started.

A forked rank has torch and NumPy loaded before its training function begins. A rank that is started plainly
loads them when the function does. In both cases they are seeded before anything draws from them, and
nothing is loaded only to be seeded.
"""

from __future__ import annotations

import importlib.abc
import os
import random
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from parsl_rasda.runtime.engine.replicas import seed_of


def seed_start(seed: int) -> None:
    """Seed the generators for what a training function draws before its first step, such as weights.

    Args:
        seed: Seed of the trial.
    """
    start = seed_of(seed, "start")
    random.seed(start)
    _once_loaded("numpy", lambda numpy: numpy.random.seed(start & 0xFFFFFFFF))
    _once_loaded("torch", lambda torch: _start_torch(torch, start))


def fix_threads(torch: Any) -> None:  # the module, so that this one need not import it
    """Give every rank the same number of threads, on which sums depend, unless the user sets it."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _start_torch(torch: Any, seed: int) -> None:
    fix_threads(torch)
    torch.manual_seed(seed)


def _once_loaded(name: str, act: Callable[[Any], None]) -> None:
    """Act on a module: now if it is loaded, else right after it is loaded."""
    sys.meta_path[:] = [f for f in sys.meta_path if not (isinstance(f, _Notice) and f.name == name)]
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Notice(name, act))


class _Notice(importlib.abc.MetaPathFinder):
    """Finds a module as the other finders would, and acts after it is executed."""

    def __init__(self, name: str, act: Callable[[Any], None]) -> None:
        self.name, self._act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders return for the module."""
        if fullname != self.name:
            return None
        others = (finder for finder in tuple(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec), None)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_and_act(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                self._act(module)

            spec.loader.exec_module = load_and_act  # type: ignore[method-assign] # of this loader only
        return spec
