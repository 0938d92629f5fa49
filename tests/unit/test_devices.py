"""Which devices a process may see, and what a job of some slots gets of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_rasda.devices import device_mask, visible_devices

PINNED = {
    "PARSL_WORKER_RANK": "2",
    "CUDA_VISIBLE_DEVICES": "2",
    "ROCR_VISIBLE_DEVICES": "2",
    "ZE_AFFINITY_MASK": "2",
    "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1",
}


@pytest.mark.parametrize(
    ("accelerator", "environment", "seen"),
    [
        ("cuda", {}, None),
        ("cuda", {"ROCR_VISIBLE_DEVICES": "1"}, None),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "2, 3"}, ("2", "3")),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, ("MIG-a", "MIG-b")),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ("1",)),
        ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, ()),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ("rocm", {"ROCR_VISIBLE_DEVICES": "4,5,6"}, ("4", "5", "6")),
        ("rocm", {"HIP_VISIBLE_DEVICES": "1,2"}, ("1", "2")),
        ("rocm", {"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "2,0,7"}, ("6", "4")),
        ("xpu", {"ZE_AFFINITY_MASK": "0.0,0.1"}, ("0.0", "0.1")),
        ("xpu", {"ZE_AFFINITY_MASK": ""}, None),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "1"}, None),
        ("cuda", PINNED, None),
        ("xpu", {**PINNED, "ROCR_VISIBLE_DEVICES": "0"}, ("2",)),
    ],
)  # fmt: skip
def test_masks_are_read_as_drivers_read_them(accelerator, environment, seen) -> None:
    assert visible_devices(accelerator, environment) == seen


@pytest.mark.parametrize(
    ("accelerator", "environment", "mask"),
    [
        ("cuda", {}, {"CUDA_VISIBLE_DEVICES": "0,2"}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "4,5,7"}, {"CUDA_VISIBLE_DEVICES": "4,7"}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "0,2"}),  # a wrapper's, for one rank
        ("cuda", PINNED, {"CUDA_VISIBLE_DEVICES": "0,2"}),
        ("xpu", {"ZE_AFFINITY_MASK": "1.0,1.1,2.0"}, {"ZE_AFFINITY_MASK": "1.0,2.0"}),
        (
            "rocm",
            {"HIP_VISIBLE_DEVICES": "3,4,5", "CUDA_VISIBLE_DEVICES": "3,4,5"},
            {"ROCR_VISIBLE_DEVICES": "3,5", "HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"},
        ),
        ("none", {"CUDA_VISIBLE_DEVICES": "1"}, {}),
    ],
)  # fmt: skip
def test_a_job_gets_the_devices_at_the_places_of_its_slots(accelerator, environment, mask) -> None:
    assert device_mask(accelerator, (0, 2), environment) == mask


@given(slots=st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True).map(sorted), data=st.data())
def test_masks_that_psslurm_gives_its_ranks_do_not_move_a_job_to_other_devices(slots, data) -> None:
    """At Juelich a step of one rank on a node sees all GPUs, each of several ranks the one of its number.

    Source: setGPUEnv of psslurmenv.c in ParaStation's psmgmt, without ConstrainDevices.
    """
    rank = data.draw(st.integers(0, len(slots) - 1))
    given_by_it = ",".join(map(str, range(8))) if len(slots) == 1 else str(rank)
    mask = device_mask("cuda", slots, {"CUDA_VISIBLE_DEVICES": given_by_it})
    assert mask == {"CUDA_VISIBLE_DEVICES": ",".join(map(str, slots))}


@given(
    accelerator=st.sampled_from(["cuda", "rocm", "xpu"]),
    devices=st.lists(st.integers(0, 15).map(str), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_jobs_on_different_slots_never_share_a_device(accelerator, devices, data) -> None:
    variable = next(iter(device_mask(accelerator, (0,), {})))
    environment = {variable: ",".join(devices)}
    slots = data.draw(st.permutations(range(len(devices))))
    cut = data.draw(st.integers(0, len(slots)))
    parts = [part for part in (slots[:cut], slots[cut:]) if part]
    given_out = [device_mask(accelerator, part, environment)[variable].split(",") for part in parts]
    assert sorted(device for part in given_out for device in part) == sorted(devices)
