"""The buffers that forward passes change in a model: running statistics, counters, estimates.

Each micro-batch starts with the buffers as they were before the step. After the step they hold the mean
over the replicas, weighted by samples (for integers: the mean growth, rounded). Their values are then a
function of the replicas, whichever ranks carry them. A buffer that no forward pass changes keeps its bits.
Buffers that are not in checkpoints are constants or caches, and are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from parsl_rasda.errors import TrainingError
from parsl_rasda.runtime.engine.flat import Flat, by_type
from parsl_rasda.runtime.engine.group import Group


class _ModuleBuffer:
    """A buffer of a module, which may replace its tensor by another."""

    def __init__(self, name: str, module: nn.Module, key: str, tensor: Tensor) -> None:
        self.name, self._module, self._key, self.tensor = name, module, key, tensor
        self.has_changed = False
        self._version = 0

    @property
    def now(self) -> Tensor:
        tensor = self._module._buffers[self._key]
        return self.tensor if tensor is None else tensor

    def mark(self) -> None:
        self._version = self.tensor._version

    def restore(self) -> None:
        """Put the buffer's own tensor in its place again, whose values are right."""
        self._module._buffers[self._key] = self.tensor
        self.mark()

    def was_touched(self) -> bool:
        return self.now is not self.tensor or self.tensor._version != self._version


class _Alike:
    """The watched buffers of one type. Vectors hold their values before the step and now."""

    def __init__(self, buffers: Sequence[_ModuleBuffer]) -> None:
        self.buffers = buffers
        tensors = [buffer.tensor for buffer in buffers]
        self._before, self._now = Flat(tensors), Flat(tensors)
        self._is_counter = not (tensors[0].is_floating_point() or tensors[0].is_complex())

    def remember(self) -> None:
        torch._foreach_copy_(self._before.views, [buffer.now for buffer in self.buffers])

    def put_back(self) -> None:
        self._put(self._before)

    def value(self) -> Tensor:
        """Return the value that is averaged, until the next micro-batch."""
        torch._foreach_copy_(self._now.views, [buffer.now for buffer in self.buffers])
        if self._is_counter:
            growth = self._now.vector.long() - self._before.vector.long()
            return growth.float()  # which has few digits
        return self._now.vector

    def find_changes(self) -> None:
        """Compare values too: some kernels, such as batch normalisation, do not count versions."""
        pairs = zip(self._now.views, self._before.views, strict=True)
        differs = torch.stack([torch.ne(now, before).any() for now, before in pairs]).tolist()
        for buffer, is_other in zip(self.buffers, differs, strict=True):
            buffer.has_changed = buffer.has_changed or is_other or buffer.was_touched()

    def alloc_mean(self) -> Tensor:
        """Return an uninitialised tensor for the mean of such values."""
        return torch.empty_like(self._now.vector, dtype=torch.float if self._is_counter else None)

    def take(self, mean: Tensor, flags: Sequence[int]) -> None:
        """Give those that change their mean, and the others their values before the step."""
        before, now = self._before.vector, self._now.vector
        now.copy_(before + _rounded(mean, now.dtype) if self._is_counter else mean)
        views = zip(self._now.views, self._before.views, flags, strict=True)
        chosen = [mine if has_changed else old for mine, old, has_changed in views]
        torch._foreach_copy_([buffer.tensor for buffer in self.buffers], chosen)
        self._restore()

    def _put(self, values: Flat) -> None:
        torch._foreach_copy_([buffer.tensor for buffer in self.buffers], values.views)
        self._restore()

    def _restore(self) -> None:
        for buffer in self.buffers:
            buffer.restore()


class RunningBuffers:
    """The buffers of a model during the steps of an epoch.

    Call `begin_epoch`; then in each step `begin_step`, `begin` and `values` for each micro-batch, and
    `finish`. The first steps of an epoch, up to the first in which each model has been trained, watch all
    buffers to find those that change.

    Args:
        model: All models as one module.
        group: The ranks.
        names: Of the models that have losses of their own.
    """

    def __init__(self, model: nn.Module, group: Group, names: Collection[str]) -> None:
        self._group, self._model, self._names = group, model, names
        self.begin_epoch()

    def begin_epoch(self, known: Collection[str] = ()) -> None:
        """Watch all buffers again, because the user may have unfrozen some.

        Args:
            known: The buffers that have changed in this epoch already, before a restart.
        """
        self._still: list[_ModuleBuffer] = []
        self._watched: list[_Alike] = []
        self._known, self._untrained = known, list(self._names)
        self._is_first = True

    @property
    def do_change(self) -> bool:
        """Whether there are buffers that forward passes change, as far as this epoch has shown."""
        return bool(self._watched)

    @property
    def changing(self) -> list[str]:
        """The names of the buffers that have changed in this epoch."""
        return [buffer.name for buffer in self._changing() if buffer.has_changed]

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember the values before the step."""
        if self._is_first and not self._watched:
            self._watched = _grouped(list(_persistent(self._model)))
            for buffer in self._changing():
                buffer.has_changed = buffer.name in self._known
        for alike in self._watched:
            alike.remember()
        for buffer in (*self._changing(), *self._still):
            buffer.mark()

    @torch.no_grad()
    def begin(self) -> None:
        """Start a micro-batch with the values before the step."""
        for alike in self._watched:
            alike.put_back()

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """Return what this micro-batch adds to the means, without its weight: vectors until the next `begin`.

        Raises:
            TrainingError: If a buffer changes now, but did not in the first steps of the epoch: the changes
                by the other replicas are lost.
        """
        for buffer in self._still:
            if buffer.was_touched():
                raise TrainingError(
                    f"The buffer {buffer.name!r} did not change in the first step of the epoch, but now.",
                    "Change it in every step, or register it with persistent=False.",
                )
        values = [alike.value() for alike in self._watched]
        if self._is_first:
            for alike in self._watched:
                alike.find_changes()
        return values

    def alloc_means(self) -> list[Tensor]:
        """Return uninitialised tensors for the means that `finish` takes."""
        return [alike.alloc_mean() for alike in self._watched]

    @torch.no_grad()
    def finish(self, means: Sequence[Tensor], trained: Collection[str]) -> None:
        """Give each buffer its mean. A collective operation in the first steps of an epoch.

        Args:
            means: Of the values.
            trained: The models that this rank has trained in the step.
        """
        watched = self._changing()
        flags: tuple[int, ...] = (1,) * len(watched)
        if self._is_first and watched:
            flags = self._agree(watched, trained)
        begin = 0
        for alike, mean in zip(self._watched, means, strict=True):
            end = begin + len(alike.buffers)
            alike.take(mean, flags[begin:end])
            begin = end
        if self._is_first and self._untrained and watched:
            return
        if not all(flags):
            self._still += [b for b, flag in zip(watched, flags, strict=True) if not flag]
            self._watched = _grouped([b for b, flag in zip(watched, flags, strict=True) if flag])
        self._is_first = False

    def _agree(self, watched: Sequence[_ModuleBuffer], trained: Collection[str]) -> tuple[int, ...]:
        """Return which buffers have changed on any rank, and note what any rank has trained."""
        mine = [b.has_changed for b in watched], [name in trained for name in self._untrained]
        found = self._group.agree([int(flag) for flags in mine for flag in flags])
        flags, are_trained = found[: len(watched)], found[len(watched) :]
        for buffer, flag in zip(watched, flags, strict=True):
            buffer.has_changed = bool(flag)
        self._untrained = [n for n, flag in zip(self._untrained, are_trained, strict=True) if not flag]
        return flags

    def _changing(self) -> list[_ModuleBuffer]:
        return [buffer for alike in self._watched for buffer in alike.buffers]


def _grouped(buffers: Sequence[_ModuleBuffer]) -> list[_Alike]:
    groups = by_type([buffer.tensor for buffer in buffers])
    return [_Alike([buffers[i] for i in group]) for group in groups]


def _rounded(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the growth of a counter; that of a bool is true if there is any."""
    return mean.round() if dtype is torch.bool else mean.round().to(dtype)


def _persistent(model: nn.Module) -> Iterator[_ModuleBuffer]:
    """Yield each buffer that is in checkpoints, once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, tensor in module._buffers.items():
            is_kept = tensor is not None and key not in module._non_persistent_buffers_set
            if tensor is None or not is_kept or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield _ModuleBuffer(f"{prefix}.{key}".lstrip("."), module, key, tensor)
