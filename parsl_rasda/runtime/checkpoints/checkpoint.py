"""Checkpoints on disk: tensors through torch.distributed.checkpoint, everything else as JSON.

A checkpoint is a directory. It is written beside its place, synced and renamed, with ``header.json``
last, so that a directory of the right name is whole. Reading one runs nothing it contains: the
metadata of torch.distributed.checkpoint is a pickle, so it goes through an unpickler that knows a
handful of record types and no function, and anything but a tensor is refused.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.errors import CheckpointError, DamagedCheckpointError

if TYPE_CHECKING:
    from torch import Size, Tensor, dtype
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.nn import Module

    Room = Callable[[str, Size, dtype], Tensor | None]

HEADER = "header.json"
FORMAT = 1
MODEL = "model."
OPTIMIZER = "optim."

# What torch.distributed.checkpoint writes into its metadata for tensors, and nothing else.
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in ("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata")),
    *(
        (_METADATA, name)
        for name in ("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
}


def checkpoint_name(epoch: int, step: int = 0) -> str:
    """Return the name of the directory for so many epochs done, and steps of the next."""
    return f"epoch-{epoch:06d}" + (f"-step-{step:08d}" if step else "")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all. One rank does it, for all ranks hold the same.

    Args:
        path: Its directory; the parent exists.
        tensors: By name; if there are none, torch is not even imported.
        header: Plain JSON.
    """
    if path.exists():
        return  # an attempt passes each point once; what is there is whole
    part = path.with_name(path.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    if tensors:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        with _torch_checkpoint(path):
            save(dict(tensors), storage_writer=FileSystemWriter(part, sync_files=True), no_dist=True)
    publish_checkpoint(part, path, header)


def publish_checkpoint(part: Path, path: Path, header: Mapping[str, Any]) -> None:
    """Put the header into a directory that is otherwise whole, and the directory into its place."""
    with (part / HEADER).open("w") as file:
        json.dump({**header, "format": FORMAT}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(part)
    part.rename(path)
    _sync_directory(path.parent)


def read_header(path: Path) -> dict[str, Any]:
    """Return what is not a tensor.

    Raises:
        DamagedCheckpointError: If this is no checkpoint, or not any more.
        CheckpointError: If it is one of another format.
    """
    try:
        header = json.loads((path / HEADER).read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(str(path), f"no readable {HEADER}: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(str(path), f"another format than {FORMAT}")
    return dict(header)


def check_header(path: Path, header: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse a header without what is needed of it.

    Raises:
        CheckpointError: If a name is missing: the checkpoint was written by something else.
    """
    missing = sorted(set(names) - header.keys())
    if missing:
        raise CheckpointError(str(path), f"its {HEADER} has no {', '.join(missing)}")


def read_tensors(path: Path, prefix: str = "", room: Room | None = None) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, on the CPU.

    Args:
        path: Of the checkpoint.
        prefix: What is wanted.
        room: Returns a tensor to read into, given name, shape and type: this rank's part of one, of which no
            more than the whole of that one is read at a time. None: all of it, on the CPU.

    Raises:
        DamagedCheckpointError: If files are missing or cut off.
        CheckpointError: If they hold anything but tensors, or others than there is room for.
    """
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
            metadata = _restricted_metadata(path)
            metadata.storage_meta = StorageMeta(load_id=self.load_id)
            return metadata

    entries = _restricted_metadata(path).state_dict_metadata
    with _torch_checkpoint(path):
        tensors = {}
        for name, entry in entries.items():
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
                place = room(name, entry.size, entry.properties.dtype) if room else None
                tensors[name] = (
                    torch.empty(entry.size, dtype=entry.properties.dtype) if place is None else place
                )
        load(tensors, storage_reader=Reader(path), no_dist=True)
    return tensors


def load_model(checkpoint: str | Path, model: Module) -> dict[str, Any]:
    """Load the weights and buffers of a checkpoint into a model, for stages after a study.

    Args:
        checkpoint: Its directory, or its URL where sites share checkpoints.
        model: Of the same configuration.

    Returns:
        The checkpoint's header: ``epoch``, ``replicas`` and more.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or belongs to another model.
        StoreError: If it cannot be fetched from its URL.
    """
    from parsl_rasda.runtime.checkpoints.shared import fetch, is_url

    if is_url(str(checkpoint)):
        with tempfile.TemporaryDirectory() as folder:
            fetch(str(checkpoint), Path(folder) / "checkpoint")
            return load_model(Path(folder) / "checkpoint", model)
    path = Path(checkpoint)
    header = read_header(path)
    tensors = read_tensors(path, MODEL)
    load_weights(path, model, {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()})
    return header


def load_weights(path: Path, model: Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights by name, all of them.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(str(path), f"it belongs to another model: {error}") from error


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows the records of a checkpoint's metadata, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _member  # Python 3.11.2 writes a member of an enumeration so
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which no checkpoint of ours does")


def _member(kind: object, name: str) -> object:
    if not isinstance(kind, EnumMeta):
        raise pickle.UnpicklingError(f"its metadata names {name} of {kind}, which no checkpoint of ours does")
    return kind.__members__[name]


def _restricted_metadata(path: Path) -> Metadata:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    try:
        metadata = _RestrictedUnpickler(io.BytesIO((path / ".metadata").read_bytes())).load()
    except Exception as error:  # a damaged pickle raises anything
        raise DamagedCheckpointError(str(path), f"unreadable metadata: {error}") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(str(path), f"its metadata is a {type(metadata).__name__}")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(str(path), f"{name} is not a tensor")
    for info in (metadata.storage_data or {}).values():
        if Path(info.relative_path).name != str(info.relative_path):
            raise CheckpointError(str(path), f"it points to {info.relative_path}, outside itself")
        file = path / info.relative_path
        if not file.is_file() or file.stat().st_size < info.offset + info.length:
            raise DamagedCheckpointError(str(path), f"{file.name} is missing or cut off")
    return metadata


@contextmanager
def _torch_checkpoint(path: Path) -> Iterator[None]:
    """Turn whatever torch raises over a checkpoint into one error of ours."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of no_dist=True too
            yield
    except CheckpointError:
        raise
    except CheckpointException as error:  # not an Exception in torch
        (cause, _), *_ = error.failures.values()
        raise CheckpointError(str(path), f"{type(cause).__name__}: {cause}") from error
    except Exception as error:
        raise CheckpointError(str(path), f"{type(error).__name__}: {error}") from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
