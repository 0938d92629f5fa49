"""Model and optimizer as checkpoints hold them: tensors by name, and the rest as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parsl_rasda.errors import CheckpointError, TrainingError
from parsl_rasda.runtime.checkpoints.checkpoint import MODEL, OPTIMIZER, load_weights, read_tensors
from parsl_rasda.runtime.engine.group import Group

if TYPE_CHECKING:
    from parsl_rasda.runtime.checkpoints.checkpoint import Room

REST_FIELDS = ("optimizer", "numbers", "options", "scaler")


class TrainingState:
    """What a model and its optimizer have become, under names that no width changes."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        group: Group,
        *,
        is_sharded: bool,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.group, self.is_sharded = group, is_sharded

    def tensors(self) -> dict[str, Tensor]:
        """Return model and optimizer as tensors by name; parameters have names, not numbers.

        A collective if the model is sharded: rank 0 gets whole tensors, the others nothing of use.
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
            from parsl_rasda.runtime.engine.sharding import whole

            return {name: whole(tensor, keep=self.group.rank == 0) for name, tensor in tensors.items()}
        return tensors

    def rest(self) -> dict[str, Any]:
        """Return what is no tensor, as plain JSON (`REST_FIELDS`)."""
        return {
            "optimizer": type(self.optimizer).__name__,
            "numbers": {name: _numbers(name, state) for name, state in self._states()},
            "options": [_json_options(options) for options in self.optimizer.param_groups],
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def restore(self, path: Path, header: Mapping[str, Any]) -> None:
        """Take a checkpoint's model and optimizer.

        Args:
            path: Of the checkpoint.
            header: Its header, with `REST_FIELDS`.

        Raises:
            CheckpointError: If it belongs to another model or optimizer.
        """
        found = type(self.optimizer).__name__
        if header["optimizer"] != found:
            raise CheckpointError(str(path), f"it holds the state of {header['optimizer']}, not of {found}")
        tensors = read_tensors(path, room=self._rooms())
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

    def _rooms(self) -> Room | None:
        """Return what makes room for this rank's parts of a checkpoint; None: it has all."""
        if not self.is_sharded:
            return None
        from parsl_rasda.runtime.engine.sharding import room

        mine = self.model.state_dict()

        def of(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
            is_state = name.startswith(OPTIMIZER)
            owner = name.removeprefix(OPTIMIZER).rpartition(".")[0] if is_state else name.removeprefix(MODEL)
            return room(mine.get(owner), shape, dtype)

        return of

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        return [(names[parameter], state) for parameter, state in self.optimizer.state.items()]

    def _restore_optimizer(
        self, path: Path, states: Mapping[str, Any], options: Sequence[Mapping[str, Any]]
    ) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        order = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        if len(options) != len(self.optimizer.param_groups) or not set(states) <= set(order):
            raise CheckpointError(str(path), "its optimizer has other parameters")
        whole = self.optimizer.state_dict()
        whole["state"] = {index: states[name] for index, name in enumerate(order) if name in states}
        for group, saved in zip(whole["param_groups"], options, strict=True):
            group.update({key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()})
        self.optimizer.load_state_dict(whole)


def _numbers(name: str, state: Mapping[str, Any]) -> dict[str, float | int | bool | None]:
    numbers = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    for key, value in numbers.items():
        if not isinstance(value, float | int | None):
            raise TrainingError(
                f"The optimizer keeps a {type(value).__name__} as {key!r} of {name}: no checkpoint holds it.",
                "Use an optimizer whose state is tensors and numbers.",
            )
    return numbers


def _json_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can be written as JSON; the learning rate is computed, never restored."""
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
