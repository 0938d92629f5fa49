"""How a rank ended, and what kind of thing made it end."""

from __future__ import annotations

import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.plain_text import LONGEST_TRACE, cleaned, words_of
from parsl_rasda.runtime.attempt.attempt import Attempt
from parsl_rasda.runtime.checkpoints.shared import StoreError
from parsl_rasda.runtime.engine.group import PeersLostError
from parsl_rasda.runtime.engine.setup_errors import GroupSetupError
from parsl_rasda.storage import storage_error
from parsl_rasda.types import Fault, Outcome

_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError|can't allocate memory|(CUDA|HIP|XPU)( error:)? out of memory"
)
_OF_DEVICE = re.compile(r"(CUDA|HIP|XPU)( error:)? out of memory")
_OTHERS = re.compile(r"Process (\d+) has ([\d.]+ [KMGT]iB) memory in use")
_DEVICE = re.compile(
    r"AcceleratorError|DeviceMissingError|(CUDA|HIP|NCCL|cuDNN|CUBLAS|XPU) error"
    r"|CUBLAS_STATUS|CUDNN_STATUS|No (CUDA|HIP) GPUs are available"
)


@dataclass(frozen=True, slots=True)
class End:
    """How a rank ended.

    Attributes:
        together: Whether the other ranks end by themselves.
    """

    outcome: Outcome
    cause: str = ""
    traceback: str = ""
    together: bool = False
    fault: Fault | None = None
    exception: str = ""


def end_by(attempt: Attempt, error: BaseException) -> End:
    """Return how an attempt ends by an exception that nobody has caught."""
    trace, name = _trace_of(error), type(error).__name__
    if "torch" in sys.modules:
        from parsl_rasda.runtime.engine.determinism import explained

        error = explained(error, is_demanded=attempt.spec.training.reduce == "exact")
    if attempt.lost_origin:
        return End(Outcome.LOST, attempt.lost_origin, trace, fault=Fault.CHECKPOINT, exception=name)
    if storage := storage_error(error, attempt.directory):
        return End(Outcome.LOST, cleaned(str(storage)), trace, fault=Fault.STORAGE, exception=name)
    if isinstance(error, PeersLostError | StoreError):
        return End(Outcome.LOST, cleaned(str(error)), trace, fault=fault_of(error), exception=name)
    return End(Outcome.FAILED, cause_of(error), trace, fault=fault_of(error), exception=name)


def fault_of(error: BaseException) -> Fault | None:
    """Return what kind of thing an exception is; None if it does not say: a command was killed."""
    if isinstance(error, PeersLostError):
        return Fault.PEERS_LOST if type(error) is PeersLostError else None
    if isinstance(error, StoreError):
        return Fault.STORAGE
    if isinstance(error, InvalidSettingError):
        return Fault.SETUP
    named = words_of(error)
    if _OUT_OF_MEMORY.search(named):
        return Fault.OUT_OF_MEMORY
    if isinstance(error, GroupSetupError):
        return Fault.SETUP
    return Fault.DEVICE if _DEVICE.search(named) else Fault.USER_CODE


def cause_of(error: BaseException) -> str:
    """Return what went wrong in one line, with the line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    runtime = str(Path(__file__).parents[1])
    own = [f for f in frames if not f.filename.startswith((runtime, sys.prefix, sys.base_prefix, "<"))]
    place = (own or frames)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    words = " ".join(words_of(error).split())
    return words + where + (_advice_on_memory(words) if _OF_DEVICE.search(words) else "")


def _advice_on_memory(words: str) -> str:
    """Return what to change after torch's own words on memory, with what other processes hold of it."""
    others = [f"process {pid} holds {held}" for pid, held in _OTHERS.findall(words)]
    if others:
        return f". Others use this GPU: {', '.join(others)}"
    return (
        ". Lower `training.batch_size`; more replicas (`scheduler.num_workers`) keep the batch of a step. "
        "`training.precision: bf16` and `training.sharding: fsdp` need less memory, too"
    )


def _trace_of(error: BaseException) -> str:
    """Return the traceback of an error, whatever it holds, and not all of one of 20 MB."""
    try:
        return cleaned("".join(traceback.format_exception(error)), LONGEST_TRACE)
    except Exception as failure:  # noqa: BLE001 - of the user's own ``__str__``
        return f"(its traceback cannot be had: {type(failure).__name__})"
