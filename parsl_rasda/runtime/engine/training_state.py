"""The state of model and optimizer as a checkpoint holds it: tensors by name, the rest as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parsl_rasda.errors import CheckpointError, TrainingError
from parsl_rasda.runtime.checkpoints.checkpoint import MODEL, OPTIMIZER, read_tensors
from parsl_rasda.runtime.checkpoints.model import load_weights
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.pairs import kinds

if TYPE_CHECKING:
    from parsl_rasda.runtime.checkpoints.checkpoint import Allocate

NON_TENSOR_FIELDS = ("optimizer", "numbers", "options", "scaler")


class TrainingState:
    """The state of a model and its optimizer, under names that do not depend on the world size."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
        group: Group,
        *,
        is_sharded: bool,
    ) -> None:
        self.model, self.optimizers, self.scaler = model, optimizers, scaler
        self.group, self.is_sharded = group, is_sharded

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of model and optimizer by name; optimizer states have the parameters' names.

        A collective operation if the model is sharded: rank 0 gets whole tensors, the others empty ones.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            if not isinstance(value, Tensor):
                raise TrainingError(
                    f"The model's state {name!r} is not a tensor.", "Keep it out of state_dict()."
                )
            tensors[MODEL + name] = value
        for name, state in self._states():
            tensors |= {f"{OPTIMIZER}{name}.{key}": v for key, v in state.items() if isinstance(v, Tensor)}
        if self.is_sharded:
            from parsl_rasda.runtime.engine.sharding import gather

            return {name: gather(tensor, keep=self.group.rank == 0) for name, tensor in tensors.items()}
        return tensors

    def non_tensor_state(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as plain JSON (`NON_TENSOR_FIELDS`)."""
        return {
            "optimizer": kinds(self.optimizers),
            "numbers": {name: _numbers(name, state) for name, state in self._states()},
            "options": [_json_options(options) for o in self.optimizers for options in o.param_groups],
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def restore(self, path: Path, header: Mapping[str, Any]) -> None:
        """Restore model and optimizer from a checkpoint.

        Args:
            path: The checkpoint.
            header: Its header, with `NON_TENSOR_FIELDS`.

        Raises:
            CheckpointError: If it belongs to another model or optimizer.
        """
        found = kinds(self.optimizers)
        if header["optimizer"] != found:
            raise CheckpointError(str(path), f"it holds the state of {header['optimizer']}, not of {found}")
        tensors = read_tensors(path, allocate=self._allocate())
        weights = {n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)}
        load_weights(path, self.model, weights)
        states: dict[str, dict[str, Any]] = {
            name: dict(numbers) for name, numbers in header["numbers"].items()
        }
        for name, tensor in tensors.items():
            if name.startswith(OPTIMIZER):
                parameter, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
                states.setdefault(parameter, {})[key] = tensor
        self._restore_optimizer(path, states, header["options"])
        if self.scaler and header["scaler"]:
            self.scaler.load_state_dict(header["scaler"])

    def _allocate(self) -> Allocate | None:
        """Return a function that allocates this rank's shards of a checkpoint; None if it reads all of it."""
        if not self.is_sharded:
            return None
        from parsl_rasda.runtime.engine.sharding import alloc_like

        mine = self.model.state_dict()

        def allocate(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
            is_state = name.startswith(OPTIMIZER)
            owner = name.removeprefix(OPTIMIZER).rpartition(".")[0] if is_state else name.removeprefix(MODEL)
            return alloc_like(mine.get(owner), shape, dtype)

        return allocate

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        return [(names[parameter], state) for o in self.optimizers for parameter, state in o.state.items()]

    def _restore_optimizer(
        self, path: Path, states: Mapping[str, Any], options: Sequence[Mapping[str, Any]]
    ) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = [group for o in self.optimizers for group in o.param_groups]
        known = {names[p] for group in groups for p in group["params"]}
        if len(options) != len(groups) or not set(states) <= known:
            raise CheckpointError(str(path), "its optimizer has other parameters")
        saved_groups = iter(options)
        for optimizer in self.optimizers:
            order = [names[p] for group in optimizer.param_groups for p in group["params"]]
            restored = optimizer.state_dict()
            restored["state"] = {index: states[name] for index, name in enumerate(order) if name in states}
            for group, saved in zip(restored["param_groups"], saved_groups, strict=False):
                group.update({key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()})
            optimizer.load_state_dict(restored)


def _numbers(name: str, state: Mapping[str, Any]) -> dict[str, float | int | bool | None]:
    numbers = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    for key, value in numbers.items():
        if not isinstance(value, float | int | None):
            raise TrainingError(
                f"The optimizer keeps a {type(value).__name__} as {key!r} of {name}, which cannot be saved.",
                "Use an optimizer whose state is tensors and numbers.",
            )
    return numbers


def _json_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that JSON can hold. The learning rate is computed, never restored."""
    kept = {}
    for key, value in options.items():
        if key in {"params", "lr", "param_names"}:
            continue
        try:
            json.dumps(value)
        except TypeError:
            continue
        kept[key] = value
    return kept
