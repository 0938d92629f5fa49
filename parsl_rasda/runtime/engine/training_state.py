"""The state of model and optimizer as a checkpoint holds it: tensors by name, the rest as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from parsl_rasda.errors import CheckpointError, TrainingError
from parsl_rasda.runtime.checkpoints.checkpoint import MODEL, OPTIMIZER, read_tensors
from parsl_rasda.runtime.checkpoints.model import load_weights
from parsl_rasda.runtime.checkpoints.registered import REGISTERED
from parsl_rasda.runtime.engine.group import Group
from parsl_rasda.runtime.engine.pairs import kinds

if TYPE_CHECKING:
    from parsl_rasda.runtime.checkpoints.checkpoint import Allocate

NON_TENSOR_FIELDS = ("optimizer", "numbers", "options", "scaler")


class _Spec(NamedTuple):
    """A tensor that rank 0 has."""

    name: str
    shape: Sequence[int]
    stride: Sequence[int]
    dtype: str

    @property
    def owner(self) -> str:
        """The name of the tensor of the model that it is, or belongs to."""
        return _owner_of(self.name)

    def alloc(self, device: torch.device | str | None) -> Tensor:
        """Return an uninitialised tensor like it."""
        return torch.empty_strided(self.shape, self.stride, dtype=getattr(torch, self.dtype), device=device)


def _owner_of(name: str) -> str:
    if name.startswith(OPTIMIZER):
        return name.removeprefix(OPTIMIZER).rpartition(".")[0]
    return name.removeprefix(MODEL)


def _specified(name: str, tensor: Tensor) -> _Spec:
    return _Spec(name, [*tensor.shape], [*tensor.stride()], str(tensor.dtype).removeprefix("torch."))


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
            "strides": self._unusual_strides(),
            "options": [_json_options(options) for o in self.optimizers for options in o.param_groups],
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def restore(self, path: Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
        """Restore model and optimizer from a checkpoint. A collective operation; rank 0 reads.

        Args:
            path: The checkpoint.
            header: Its header, with `NON_TENSOR_FIELDS`.

        Returns:
            The tensors of what was registered, by their names there, on the host of every rank.

        Raises:
            CheckpointError: If it belongs to another model or optimizer.
        """
        found = kinds(self.optimizers)
        if header["optimizer"] != found:
            raise CheckpointError(str(path), f"it holds the state of {header['optimizer']}, not of {found}")
        whole: dict[str, Tensor] = {}

        def read() -> str:
            whole.update(read_tensors(path, allocate=self._allocate(header)))
            self._check_weights(path, whole)
            return json.dumps([_specified(name, tensor) for name, tensor in whole.items()])

        specs = [_Spec(*spec) for spec in json.loads(self.group.from_first(read))]
        weights = self._spread([spec for spec in specs if spec.name.startswith(MODEL)], whole)
        load_weights(path, self.model, {name.removeprefix(MODEL): t for name, t in weights.items()})
        del weights  # before there are others
        tensors = self._spread([spec for spec in specs if spec.name.startswith(OPTIMIZER)], whole)
        states: dict[str, dict[str, Any]] = {
            name: dict(numbers) for name, numbers in header["numbers"].items()
        }
        for name, tensor in tensors.items():
            parameter, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
            states.setdefault(parameter, {})[key] = tensor
        self._restore_optimizer(path, states, header["options"])
        if self.scaler and header["scaler"]:
            self.scaler.load_state_dict(header["scaler"])
        return self._spread_on_host([s for s in specs if s.name.startswith(f"{REGISTERED}.")], whole)

    def _owners(self) -> dict[str, Tensor]:
        """Return the tensors of the model by name."""
        return {name: t for name, t in self.model.state_dict().items() if isinstance(t, Tensor)}

    def _allocate(self, header: Mapping[str, Any]) -> Allocate:
        """Return a function that allocates tensors with the strides that they had.

        Headers of earlier versions do not tell them; there a tensor is taken to be like its parameter.
        """
        strides: Mapping[str, Sequence[int]] | None = header.get("strides")
        like = dict(self.model.named_parameters())

        def allocate(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
            if strides is not None:
                stride = strides.get(name)
            else:
                owner = like.get(_owner_of(name)) if name.startswith(OPTIMIZER) else None
                stride = owner.stride() if owner is not None and owner.shape == shape else None
            return None if stride is None else torch.empty_strided(shape, stride, dtype=dtype)

        return allocate

    def _check_weights(self, path: Path, whole: Mapping[str, Tensor]) -> None:
        """Refuse the weights of another model before they are sent."""
        shapes = {n.removeprefix(MODEL): t.shape for n, t in whole.items() if n.startswith(MODEL)}
        mine = {name: tensor.shape for name, tensor in self._owners().items()}
        if self.group.size > 1 and shapes != mine:
            names = sorted(n for n in shapes.keys() | mine.keys() if shapes.get(n) != mine.get(n))
            raise CheckpointError(str(path), f"it belongs to another model: {', '.join(names)} differ")

    def _spread(self, specs: Sequence[_Spec], whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that rank 0 has read, on every rank; of a sharded one, this rank's part.

        A collective operation. On rank 0, they are taken out of ``whole``. There is at most one whole tensor
        of a sharded one on a device at a time.
        """
        if self.group.size == 1:
            return {spec.name: whole.pop(spec.name) for spec in specs}
        parts: dict[str, Tensor] = {}
        owners = self._owners()
        for spec in specs:
            owner = owners.get(spec.owner)
            is_on_host = owner is None or spec.name.endswith(".step")
            target = spec.alloc("cpu" if is_on_host else self.group.device)
            if (mine := whole.pop(spec.name, None)) is not None:
                target.copy_(mine)
            if self.is_sharded and owner is not None and tuple(owner.shape) == tuple(spec.shape):
                from parsl_rasda.runtime.engine.sharding import is_part, scatter

                target = scatter(target, owner) if is_part(owner) else target
            parts[spec.name] = target
        plain = [p for p in parts.values() if type(p) is Tensor]
        self.group.broadcast(plain)
        return parts

    def _spread_on_host(self, specs: Sequence[_Spec], whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that rank 0 has read, on the host of every rank. A collective operation.

        They are sent as bytes, since a backend may not know the type of what the user has registered.
        """
        mine = {s.name: whole.pop(s.name) if s.name in whole else s.alloc("cpu") for s in specs}
        self.group.broadcast([tensor.view(-1).view(torch.uint8) for tensor in mine.values()])
        return mine

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        return [(names[parameter], state) for o in self.optimizers for parameter, state in o.state.items()]

    def _unusual_strides(self) -> dict[str, list[int]]:
        found = {
            f"{OPTIMIZER}{name}.{key}": value
            for name, state in self._states()
            for key, value in state.items()
            if type(value) is Tensor and not value.is_contiguous()
        }
        return {
            name: list(t.stride()) for name, t in found.items() if torch.empty_like(t).stride() == t.stride()
        }

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
