"""The model of a checkpoint: its weights and buffers, by name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.errors import CheckpointError
from parsl_rasda.runtime.checkpoints.checkpoint import GIVEN, MODEL, read_header, read_tensors
from parsl_rasda.runtime.checkpoints.shared import fetch, is_url

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def load_model(checkpoint: str | Path, model: Module) -> dict[str, Any]:
    """Load the weights and buffers of a checkpoint into a model, in the stages after a study.

    Args:
        checkpoint: Its directory, or its URL where sites share checkpoints.
        model: A model of the same configuration.

    Returns:
        The checkpoint's header: ``epoch``, ``replicas`` and more.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or belongs to another model.
        StoreError: If it cannot be fetched from its URL.
    """
    if is_url(str(checkpoint)):
        with tempfile.TemporaryDirectory() as folder:
            fetch(str(checkpoint), Path(folder) / "checkpoint")
            return load_model(Path(folder) / "checkpoint", model)
    path = Path(checkpoint)
    header = read_header(path)
    if GIVEN in header:
        raise CheckpointError(
            str(path), f"a loop of the user's own has saved it: load {GIVEN}/{header[GIVEN]} by what wrote it"
        )
    tensors = read_tensors(path, MODEL)
    load_weights(path, model, {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()})
    return header


def load_weights(path: Path, model: Module, weights: Mapping[str, Tensor]) -> None:
    """Load all weights of a model by name.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(str(path), f"it belongs to another model: {error}") from error
