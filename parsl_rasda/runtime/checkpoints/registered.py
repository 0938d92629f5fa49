"""What a training function keeps besides its models, in the same checkpoint: averaged weights, for one.

Whatever has ``state_dict`` and ``load_state_dict`` can be kept (`Trial.register`). Its tensors are saved
with those of the model. The rest is JSON in the header, in which a mapping is a list of pairs, because its
keys may be numbers::

    "registered": {"ema": {"dict": [["decay", 0.999], ["shadow", [{"tensor": "shadow.0"}]]]}}
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.errors import CheckpointError, TrainingError
from parsl_rasda.runtime.checkpoints.checkpoint import read_header, read_tensors
from parsl_rasda.runtime.checkpoints.shared import fetch, is_url

if TYPE_CHECKING:
    from torch import Tensor

REGISTERED = "registered"  # in the header, and how the names of its tensors begin


class Registered:
    """The objects that a trial keeps, by name."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}
        self._each_step: list[Callable[[], object]] = []
        self._source: Path | None = None
        self._saved: dict[str, Any] = {}  # what the checkpoint to resume from has, and nobody has taken
        self._tensors: dict[str, Tensor] = {}  # of that checkpoint
        self._is_closed = False

    def resume(self, path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Let objects take their state from a checkpoint, when they are added.

        Args:
            path: The checkpoint.
            header: Its header.
            tensors: Its tensors of what was registered, on the CPU.
        """
        self._source, self._saved, self._tensors = path, dict(header.get(REGISTERED, {})), dict(tensors)

    def add(self, name: str, thing: Any, each_step: Callable[[], object] | None) -> None:
        """Keep an object, and give it its state if training is resumed.

        Raises:
            TrainingError: If it cannot be kept.
            CheckpointError: If the checkpoint to resume from has nothing of it.
        """
        if self._is_closed or name in self._objects:
            raise TrainingError(
                f"trial.register({name!r}, ...) was called " + ("late." if self._is_closed else "twice."),
                "Call it once for each name, after trial.prepare and before the first batch.",
            )
        if not all(callable(getattr(thing, method, None)) for method in ("state_dict", "load_state_dict")):
            raise TrainingError(
                f"trial.register({name!r}, ...) got a {type(thing).__name__}, which has no state_dict and "
                "load_state_dict.",
                "Give it an object that has both, such as torch.optim.swa_utils.AveragedModel(model).",
            )
        _encoded(name, thing.state_dict(), {})  # what cannot be saved is refused at once
        if self._source is not None:
            if name not in self._saved:
                raise CheckpointError(str(self._source), f"it has nothing that was registered as {name!r}")
            tensors = {full: t for full, t in self._tensors.items() if full.startswith(_prefix(name))}
            _load(self._source, name, self._saved.pop(name), thing, tensors)
        self._objects[name] = thing
        if each_step is not None:
            self._each_step.append(each_step)

    def close(self) -> None:
        """Add no more from now on.

        Raises:
            CheckpointError: If the checkpoint to resume from has what nobody has added.
        """
        self._is_closed, self._tensors = True, {}
        if self._saved:
            found = ", ".join(self._saved)
            raise CheckpointError(
                str(self._source), f"it has {found}, for which trial.register was not called this time"
            )

    def after_step(self) -> None:
        """Call what the user wants to be called after each update of the weights."""
        for call in self._each_step:
            call()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what there is to save: a part of the header, and tensors by name."""
        tensors: dict[str, Tensor] = {}
        trees = {name: _encoded(name, thing.state_dict(), tensors) for name, thing in self._objects.items()}
        return ({REGISTERED: trees} if trees else {}), tensors


def load_registered(checkpoint: str | Path, name: str, thing: Any) -> None:
    """Load what a trial has registered into an object like it, in the stages after a study.

    Args:
        checkpoint: Its directory, or its URL where sites share checkpoints.
        name: That was given to `Trial.register`.
        thing: An object with ``load_state_dict``, made as in training.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or has nothing of that name.
        StoreError: If it cannot be fetched from its URL.
    """
    if is_url(str(checkpoint)):
        with tempfile.TemporaryDirectory() as folder:
            fetch(str(checkpoint), Path(folder) / "checkpoint")
            return load_registered(Path(folder) / "checkpoint", name, thing)
    path = Path(checkpoint)
    trees = read_header(path).get(REGISTERED, {})
    if name not in trees:
        has = ", ".join(trees) or "nothing"
        raise CheckpointError(str(path), f"nothing was registered as {name!r}; it has {has}")
    return _load(path, name, trees[name], thing, read_tensors(path, _prefix(name)))


def _prefix(name: str) -> str:
    return f"{REGISTERED}.{name}."


def _load(path: Path, name: str, tree: Any, thing: Any, saved: Mapping[str, Tensor]) -> None:
    prefix = _prefix(name)
    present: dict[str, Tensor] = {}
    _encoded(name, thing.state_dict(), present)
    tensors = {
        full.removeprefix(prefix): tensor.to(present[full].device) if full in present else tensor
        for full, tensor in saved.items()
    }
    try:
        thing.load_state_dict(_decoded(tree, tensors))
    except (RuntimeError, ValueError, KeyError) as error:  # as torch and others say that it does not fit
        raise CheckpointError(str(path), f"what was registered as {name!r} does not fit: {error}") from error


def _encoded(name: str, value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """Return a state as JSON, and put its tensors into ``tensors``."""
    import torch

    match value:
        case None | bool() | int() | float() | str():
            return value
        case torch.Tensor() if type(value) in {torch.Tensor, torch.nn.Parameter} and not value.is_sparse:
            while f"{REGISTERED}.{name}.{place}" in tensors:
                place += "'"  # of keys with dots in them
            tensors[f"{REGISTERED}.{name}.{place}"] = value.detach()
            return {"tensor": place}
        case Mapping():
            pairs = ((key, _encoded(name, part, tensors, _below(place, key))) for key, part in value.items())
            return {"dict": [[_plain(name, key, place), part] for key, part in pairs]}
        case list() | tuple():
            parts = [_encoded(name, part, tensors, _below(place, i)) for i, part in enumerate(value)]
            return {"tuple": parts} if isinstance(value, tuple) else parts
        case _:
            return _plain(name, value, place)


def _plain(name: str, value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TrainingError(
        f"The state of {name!r}, which trial.register was given, has a {type(value).__name__}"
        + (f" at {place!r}" if place else "")
        + ", which cannot be saved.",
        "Give an object whose state_dict() has whole tensors, numbers, text, and lists and dicts of these.",
    )


def _below(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _decoded(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    match tree:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": pairs}:
            return {key: _decoded(part, tensors) for key, part in pairs}
        case {"tuple": parts}:
            return tuple(_decoded(part, tensors) for part in parts)
        case list():
            return [_decoded(part, tensors) for part in tree]
        case _:
            return tree
