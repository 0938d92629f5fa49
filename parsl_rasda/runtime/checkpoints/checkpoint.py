"""The format of a checkpoint on disk: tensors by torch.distributed.checkpoint, everything else as JSON.

A checkpoint is a directory. It is written beside its place, synced and renamed; ``header.json`` is
written last. A directory of the right name was therefore whole once, and the `seal` in its header tells
whether it still is. Reading a checkpoint executes nothing
that it contains. The metadata of torch.distributed.checkpoint is a pickle, so it is read by an unpickler
that knows a few record types and no function; anything but a tensor is refused.
"""

from __future__ import annotations

import io
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl_rasda.atomic_files import replace_file, sync_folder
from parsl_rasda.checkpoint_files import HEADER
from parsl_rasda.errors import CheckpointError, DamagedCheckpointError
from parsl_rasda.runtime.checkpoints.seal import SEAL_FIELDS, check_files, sealed, sealed_header
from parsl_rasda.storage import storage_error, storing

if TYPE_CHECKING:
    from torch import Size, Tensor, dtype
    from torch.distributed.checkpoint.metadata import Metadata

    Allocate = Callable[[str, Size, dtype], Tensor | None]

MODEL = "model."
OPTIMIZER = "optim."
GIVEN = "given"  # a folder of what a loop of the user's own has saved, and its name in the header
_MISFIT = re.compile(r"Size mismatch|can't allocate memory|MemoryError")

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
    """Return the name of a checkpoint's directory.

    Args:
        epoch: Epochs done.
        step: Steps done in the next epoch.
    """
    return f"epoch-{epoch:06d}" + (f"-step-{step:08d}" if step else "")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. One rank writes it, because all ranks hold the same state.

    Args:
        path: Its directory. The parent must exist.
        tensors: The tensors by name. Without any, torch is not imported.
        header: Plain JSON.

    Raises:
        StorageError: If the file system fails.
    """
    if path.exists():
        return  # an attempt reaches each point once, so what is there is whole
    part = path.with_name(path.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with storing(path):
            part.mkdir()
        if tensors:
            _write_tensors(part, path, tensors)
        publish_checkpoint(part, path, header)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # a full disk needs the space for the report
        raise


def publish_checkpoint(part: Path, path: Path, header: Mapping[str, Any]) -> None:
    """Seal a directory that is otherwise complete by its header, and move it to its place.

    Raises:
        StorageError: If the file system fails.
    """
    with storing(path):
        replace_file(part / HEADER, sealed(part, header))
        part.rename(path)
        sync_folder(path.parent)


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a checkpoint: everything that is not a tensor.

    Raises:
        DamagedCheckpointError: If it is missing or damaged.
        CheckpointError: If the checkpoint has another format.
        StorageError: If the file system fails.
    """
    return {name: value for name, value in sealed_header(path).items() if name not in SEAL_FIELDS}


def check_header(path: Path, header: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse a header in which a required field is missing.

    Raises:
        CheckpointError: If a field is missing, because another program wrote the checkpoint.
    """
    missing = sorted(set(names) - header.keys())
    if missing:
        raise CheckpointError(str(path), f"its {HEADER} has no {', '.join(missing)}")


def read_tensors(path: Path, prefix: str = "", allocate: Allocate | None = None) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, on the CPU.

    Args:
        path: The checkpoint.
        prefix: How the names of the wanted tensors begin.
        allocate: Given name, shape and type, returns a tensor to read into, on the CPU, or None for a
            contiguous one.

    Raises:
        DamagedCheckpointError: If files are missing or damaged, or cannot be read for any other reason.
        CheckpointError: If they are whole, but hold tensors of another shape than allocated.
        StorageError: If the file system fails.
    """
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    class RestrictedReader(FileSystemReader):
        def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
            metadata = _restricted_metadata(path)
            metadata.storage_meta = StorageMeta(load_id=self.load_id)
            return metadata

    is_sealed = check_files(path)
    entries = _restricted_metadata(path).state_dict_metadata
    with _reading(path, is_sealed=is_sealed):
        tensors = {}
        for name, entry in entries.items():
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
                size, dtype = entry.size, entry.properties.dtype
                target = allocate(name, size, dtype) if allocate else None
                tensors[name] = torch.empty(size, dtype=dtype) if target is None else target
        load(tensors, storage_reader=RestrictedReader(path), no_dist=True)
    return tensors


class _RestrictedUnpickler(pickle.Unpickler):  # noqa: S301 - it knows no code to run
    """Knows the record types of a checkpoint's metadata and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _member  # Python 3.11.2 pickles a member of an enumeration by it
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which is not part of a checkpoint")


def _member(kind: object, name: str) -> object:
    """Stand in for `getattr`: return a member of an enumeration, and refuse everything else."""
    if not isinstance(kind, EnumMeta):
        raise pickle.UnpicklingError(
            f"its metadata names {name} of {kind}, which is not part of a checkpoint"
        )
    return kind.__members__[name]


def _restricted_metadata(path: Path) -> Metadata:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    try:
        metadata = _RestrictedUnpickler(io.BytesIO((path / ".metadata").read_bytes())).load()
    except Exception as error:  # a damaged pickle raises anything
        raise DamagedCheckpointError(str(path), f"unreadable metadata: {error}") from error
    if not isinstance(metadata, Metadata):
        raise DamagedCheckpointError(str(path), f"its metadata is a {type(metadata).__name__}")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise DamagedCheckpointError(str(path), f"{name} is not a tensor")
    for info in (metadata.storage_data or {}).values():
        if Path(info.relative_path).name != str(info.relative_path):
            raise DamagedCheckpointError(str(path), f"it points to {info.relative_path}, outside itself")
        file = path / info.relative_path
        if not file.is_file() or file.stat().st_size < info.offset + info.length:
            raise DamagedCheckpointError(str(path), f"{file.name} is missing or cut off")
    return metadata


def _write_tensors(part: Path, path: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _quiet():
            save(dict(tensors), storage_writer=FileSystemWriter(part, sync_files=True), no_dist=True)
    except (CheckpointException, Exception) as error:  # noqa: BLE001 - torch's own is not an Exception
        cause = _cause_of(error)
        raise storage_error(cause, path) or CheckpointError(str(path), _named(cause)) from cause


@contextmanager
def _reading(path: Path, *, is_sealed: bool) -> Iterator[None]:
    """Turn every error that torch raises for a checkpoint: what cannot be read is damaged.

    Unless it is whole, and does not fit the tensors or the memory that there are.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with _quiet():
            yield
    except CheckpointError:
        raise
    except (CheckpointException, Exception) as error:  # noqa: BLE001 - a damaged file raises anything
        cause = _cause_of(error)
        does_not_fit = is_sealed and _MISFIT.search(_named(cause))
        kind = CheckpointError if does_not_fit else DamagedCheckpointError
        raise storage_error(cause, path) or kind(str(path), _named(cause)) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # also warned of with no_dist=True
        yield


def _cause_of(error: BaseException) -> BaseException:
    """Return the first of the errors that torch has gathered from all ranks, or the error itself."""
    for cause, _ in getattr(error, "failures", {}).values():
        return cause if isinstance(cause, BaseException) else error
    return error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
