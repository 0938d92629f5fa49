"""Which devices a process may see: the masks of CUDA, ROCm and Level Zero, read and written; pure.

The number of a slot is its place among the devices that the pilot sees. A rank inherits the pilot's
mask and narrows it to its job's slots, so that a mask of names (of MIG instances, of tiles) or one
that begins elsewhere than at 0 gives everybody what is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from parsl_rasda.types import DEVICE_MASKS

# HIP counts among what ROCr leaves, and knows the variable of CUDA too.
_OF_HIP = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def visible_devices(accelerator: str, environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the devices that an environment lets a process see, by number or name; None: all of them."""
    if accelerator not in DEVICE_MASKS or _is_pinned(environment):
        return None
    seen = _entries(environment.get(DEVICE_MASKS[accelerator]))
    if accelerator == "xpu":
        return seen or None  # an empty mask of Level Zero hides nothing
    of_hip = _entries(environment.get(_OF_HIP[0])) if accelerator == "rocm" else None
    if seen is None or of_hip is None:
        return of_hip if seen is None else seen
    return tuple(seen[int(place)] for place in of_hip if place.isdecimal() and int(place) < len(seen))


def device_mask(accelerator: str, slots: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which a process sees the devices of some slots only, in their order."""
    if accelerator not in DEVICE_MASKS:
        return {}
    seen = visible_devices(accelerator, environment)
    if seen is None or max(slots) >= len(seen):  # another mask than the pilot's, of a wrapper say
        names = [str(slot) for slot in slots]
    else:
        names = [seen[slot] for slot in slots]
    mask = {DEVICE_MASKS[accelerator]: ",".join(names)}
    if accelerator == "rocm":
        places = ",".join(map(str, range(len(slots))))
        mask |= {variable: places for variable in _OF_HIP if variable in environment}
    return mask


def _entries(mask: str | None) -> tuple[str, ...] | None:
    """Return the devices of a mask; the first that is none hides all behind it, as drivers have it."""
    if mask is None:
        return None
    entries = (entry.strip() for entry in mask.split(","))
    return tuple(takewhile(lambda entry: entry and entry != "NoDevFiles" and entry[0] != "-", entries))


def _is_pinned(environment: Mapping[str, str]) -> bool:
    """Whether the masks are of one worker of Parsl's, which hide from it what its pilot has.

    Source: `available_accelerators` in Parsl's process_worker_pool.py.
    """
    masks = [environment.get(DEVICE_MASKS[accelerator]) for accelerator in ("rocm", "xpu")]
    marks = {"PARSL_WORKER_RANK", "ZE_ENABLE_PCI_ID_DEVICE_ORDER"}
    return marks <= environment.keys() and masks[0] is not None and masks[0] == masks[1]
