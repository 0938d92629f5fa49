"""Which devices a process may see: reads and writes the masks of CUDA, ROCm and Level Zero. Pure.

The number of a slot is its place among the devices that the pilot sees. A rank inherits the pilot's mask
and narrows it to the slots of its job. So every rank gets its own devices, also if the mask has names (of
MIG instances, of tiles) or does not begin at 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

CORES_VARIABLE = "PARSL_RASDA_CORES"  # in every rank: the cores of each GPU of a node, `0-7 8-15`

BACKEND_VARIABLE = "PARSL_RASDA_BACKEND"  # of torch.distributed: gloo lets several ranks share a GPU

# The variable that hides other devices, for each kind of accelerator.
DEVICE_MASKS = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "rocm": "ROCR_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
}
# HIP counts the devices that ROCr leaves visible, and obeys CUDA's variable, too.
_OF_HIP = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def visible_devices(accelerator: str, environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the devices that a process with this environment sees, by number or name; None means all."""
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
    """Return the variables that let a process see only the devices of these slots, in this order."""
    if accelerator not in DEVICE_MASKS:
        return {}
    seen = visible_devices(accelerator, environment)
    if seen is None or max(slots) >= len(seen):  # not the pilot's mask: set by a wrapper, for example
        names = [str(slot) for slot in slots]
    else:
        names = [seen[slot] for slot in slots]
    mask = {DEVICE_MASKS[accelerator]: ",".join(names)}
    if accelerator == "rocm":
        places = ",".join(map(str, range(len(slots))))
        mask |= {variable: places for variable in _OF_HIP if variable in environment}
    return mask


def own_instance(mask: Mapping[str, str], place: int) -> str | None:
    """Return the MIG instance at a place of a mask, or None if its devices are whole GPUs.

    CUDA shows a process no more than the first instance of a mask, so each rank must have its own alone.

    Source: NVIDIA's MIG user guide, "CUDA visible devices".
    """
    names = mask.get(DEVICE_MASKS["cuda"], "").split(",")
    return names[place] if names[0].startswith("MIG-") else None


def _entries(mask: str | None) -> tuple[str, ...] | None:
    """Return the devices of a mask. As in the drivers, an invalid entry hides all that follow."""
    if mask is None:
        return None
    entries = (entry.strip() for entry in mask.split(","))
    return tuple(takewhile(lambda entry: entry and entry != "NoDevFiles" and entry[0] != "-", entries))


def _is_pinned(environment: Mapping[str, str]) -> bool:
    """Return whether the masks are those of a single Parsl worker, which hide the pilot's other devices.

    Source: `available_accelerators` in Parsl's process_worker_pool.py.
    """
    masks = [environment.get(DEVICE_MASKS[accelerator]) for accelerator in ("rocm", "xpu")]
    marks = {"PARSL_WORKER_RANK", "ZE_ENABLE_PCI_ID_DEVICE_ORDER"}
    return marks <= environment.keys() and masks[0] is not None and masks[0] == masks[1]
