"""Kernels that give the same bits each time, inside the passes whose sums must be exact, and nowhere else.

torch's deterministic mode is process-wide. `Deterministic` switches it on before a forward pass and leaves it
as it was after the backward pass. It is the strict mode: under ``warn_only``, flash and memory-efficient
attention keep their unordered backward, and cuDNN's, which has no other, may be chosen.

An operation without a deterministic form is an error where `reduce: exact` is demanded. With `auto`, a pass
that is watched finds it and lets it run, and the trial is marked as best effort from then on. Training passes
are watched until each model has been trained once, validation passes until something is found. What was found
is in checkpoints, so that a resumed trial does not fail by it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # of which torch's own counters are made

from parsl_rasda.errors import TrainingError

YES = "yes"
TRAINING, VALIDATION = "training", "validation"  # the kinds of passes
# torch, aten/src/ATen/Context.cpp: `Context::alertNotDeterministic`.
_UNORDERED = re.compile(r"^(\S.*?) does not have a deterministic implementation, but you set")
# torch, aten/src/ATen/native/transformers/hip/flash_attn/aot: AOTriton's backward is told to be deterministic
# and takes no notice. Nothing warns of it.
UNORDERED_ON_ROCM = frozenset(
    f"aten::{name}"
    for name in (
        "_flash_attention_backward",
        "_efficient_attention_backward",
        "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_efficient_attention_backward",
    )
)
_COMPILED = "nobody sees the kernels of torch.compile; `training.reduce: exact` refuses those that are unfit"


class Deterministic:
    """Deterministic mode around the passes of one model.

    Attributes:
        unordered: Operations that have been found to have no deterministic form.
    """

    def __init__(self, *, is_demanded: bool, is_compiled: bool, is_rocm: bool) -> None:
        """Leave everything as it is, so far.

        Args:
            is_demanded: Whether such an operation is an error.
            is_compiled: Whether the model is compiled, so that nobody sees its operations.
            is_rocm: Whether the kernels are those of ROCm.
        """
        self.unordered: dict[str, None] = {}
        self._is_demanded, self._is_compiled = is_demanded, is_compiled
        self._silent = UNORDERED_ON_ROCM if is_rocm else frozenset()
        self._seen: set[str] = set()  # kinds of passes that are no longer watched
        self._watch: _Watch | None = None
        self._restore: Callable[[], None] | None = None

    @property
    def words(self) -> str:
        """Whether the results are the same bits each time: yes, or "best effort because ..."."""
        if self.unordered:
            return f"best effort because here is no deterministic form of {', '.join(self.unordered)}"
        if self._is_compiled and not self._is_demanded:
            return f"best effort because {_COMPILED}"
        return YES

    def know(self, operations: Iterable[str]) -> None:
        """Note operations that another process has found."""
        self.unordered |= dict.fromkeys(operations)

    def has_seen(self, kind: str) -> None:
        """Watch passes of a kind no longer."""
        self._seen.add(kind)

    def begin(self, kind: str) -> None:
        """Begin a pass, which is watched as long as it may show something.

        Args:
            kind: Of passes that run the same operations.
        """
        if self._restore is not None:
            return
        self._restore = _settings()
        is_strict = self._is_demanded or self.words == YES
        _set_strict(is_strict=is_strict)
        if is_strict and kind not in self._seen and not self._is_compiled:
            self._watch = _Watch(self._found, self._silent)
            self._watch.__enter__()  # type: ignore[no-untyped-call] # torch
        if kind == VALIDATION and self._is_demanded:
            self.has_seen(kind)  # torch refuses the rest

    def end(self) -> None:
        """End the pass, and leave all settings as they were before it."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)  # type: ignore[no-untyped-call] # torch
            self._watch = None
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _found(self, operation: str) -> None:
        """Note an operation, or refuse it."""
        if self._is_demanded:
            raise unfit(operation)
        self.unordered[operation] = None


def unfit(operation: str, *, is_demanded: bool = True) -> TrainingError:
    """Return the error for an operation that has no deterministic form, in our words.

    Args:
        operation: Its name.
        is_demanded: Whether sums must be exact; else they were exact until the operation first ran.
    """
    other = "Use another one (attention: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or set "
    if not is_demanded:
        return TrainingError(
            f"The operation {operation} has no deterministic form on this device, and first ran after the "
            "passes that `training.reduce: auto` watches.",
            other + "`training.reduce: ddp`.",
        )
    return TrainingError(
        f"The operation {operation} has no deterministic form on this device, so its sums are not exact.",
        other + "`training.reduce: auto`, which marks the trial as best effort, or `ddp`.",
    )


def explained(error: BaseException, *, is_demanded: bool) -> BaseException:
    """Return our error in the place of torch's, if it is of an operation without a deterministic form."""
    found = _UNORDERED.match(str(error)) if type(error) is RuntimeError else None
    if found is None:
        return error
    return unfit(found[1], is_demanded=is_demanded).with_traceback(error.__traceback__)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch
    """Finds the operations without a deterministic form, forward and backward, and lets them run.

    It costs some microseconds an operation.
    """

    supports_higher_order_operators = True

    def __init__(self, found: Callable[[str], None], silent: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch
        self._found, self._silent = found, silent

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # else torch would not compile what the user has asked it to

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # Any: torch's operations are untyped
        name = str(getattr(func, "name", lambda: "")())
        if name.partition(".")[0] in self._silent:
            self._found(f"attention's backward on ROCm ({name.partition('.')[0].removeprefix('aten::')})")
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            found = _UNORDERED.match(str(error))
            if found is None:
                raise
            unordered = found[1]
        self._found(unordered)
        with _lenient():
            return func(*args, **(kwargs or {}))


@contextmanager
def _lenient() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
        _set_strict(is_strict=False)
        try:
            yield
        finally:
            _set_strict(is_strict=True)


def _set_strict(*, is_strict: bool) -> None:
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=not is_strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time


def _settings() -> Callable[[], None]:
    """Return a function that restores the settings as they are now."""
    mode, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark

    def restore() -> None:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark

    return restore
