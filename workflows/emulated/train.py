"""A training function that sleeps instead of training, for tests, many slots and side-by-side runs.

Loss and epoch time are pure functions of the seed, the configuration, the epoch and the world size, so
two schedulers can be given exactly the same work. It can also misbehave, on order. Never imports torch.

``inputs`` (the stage's ``with:``), all optional:

==============  ========================================================================  =======
``epoch_s``     an epoch of an average configuration on one slot [s]                      1.0
``efficiency``  parallel efficiency of each doubling: twice the slots are 2 x this fast   0.9
``spread``      relative spread of epoch times between configurations, 0 to below 1       0.0
``seed``        of the losses and the epoch times                                         0
==============  ========================================================================  =======

``config``: whatever the study searches; ``lr`` matters most (best near 0.01). And, to misbehave:

==================  ====================================================================  ==========
``fault``           none, raise, nan, signal (SIGKILL to itself), exit (status 7)         none
``fault_epoch``     the epoch, counted from 0, in the middle of which it happens          0
``fault_attempts``  it happens in attempts up to this one                                 every one
==================  ====================================================================  ==========
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parsl_rasda.errors import InvalidSettingError

if TYPE_CHECKING:
    from parsl_rasda.runtime import Trial

FAULTS = ("none", "raise", "nan", "signal", "exit")
EXIT_STATUS = 7


class EmulatedFaultError(RuntimeError):
    """The failure that a configuration asked for."""


def train(trial: Trial) -> None:
    """Sleep through each epoch and report ``val_loss``; it starts near 1 and a smaller one is better."""
    inputs: Any = trial.inputs  # plain JSON of the study file
    seed = int(inputs.get("seed", 0))
    seconds = epoch_time_s(
        trial.config,
        trial.world_size,
        epoch_s=float(inputs.get("epoch_s", 1.0)),
        efficiency=float(inputs.get("efficiency", 0.9)),
        spread=float(inputs.get("spread", 0.0)),
        seed=seed,
    )
    fault = fault_of(trial.config)
    faulty = fault != "none" and _attempt(trial) <= trial.config.get("fault_attempts", math.inf)
    fault_epoch = int(trial.config.get("fault_epoch", 0))
    for epoch in trial.epochs():
        if faulty and epoch == fault_epoch and fault != "nan":
            time.sleep(seconds / 2)
            misbehave(fault)
        time.sleep(seconds)
        diverged = faulty and fault == "nan" and epoch >= fault_epoch
        trial.report(val_loss=math.nan if diverged else loss(trial.config, epoch + 1, seed=seed))


def loss(config: Mapping[str, Any], epochs: int, *, seed: int) -> float:
    """Return the validation loss of a configuration after so many epochs.

    An exponential decay to a level of its own: worse the further ``lr`` lies from 0.01, with a part
    and a pace drawn for the configuration, and noise of 1 % that makes neighbours change places.
    """
    distance = min(abs(math.log10(float(config.get("lr", 0.01))) + 2), 3.0)
    level = 0.05 + 0.15 * distance + 0.2 * _draw(seed, config, "level")
    pace = 0.4 + 0.8 * _draw(seed, config, "pace")
    noise = 0.01 * (2 * _draw(seed, config, "noise", epochs) - 1)
    return level + (1 - level) * math.exp(-pace * epochs) + noise


def epoch_time_s(
    config: Mapping[str, Any], world_size: int, *, epoch_s: float, efficiency: float, spread: float, seed: int
) -> float:
    """Return how long an epoch takes [s]: ``epoch_s`` on one slot, ``2 * efficiency`` faster a doubling.

    Raises:
        InvalidSettingError: If a time, an efficiency or a spread is out of its range.
    """
    if epoch_s < 0:
        raise InvalidSettingError("with.epoch_s", epoch_s, "0 or more")
    if not 0 < efficiency <= 1:
        raise InvalidSettingError("with.efficiency", efficiency, "above 0, at most 1")
    if not 0 <= spread < 1:
        raise InvalidSettingError("with.spread", spread, "0 or more, below 1")
    own = 1 + spread * (2 * _draw(seed, config, "time") - 1)
    speed_up = math.pow(2 * efficiency, math.log2(world_size))
    return epoch_s * own / speed_up


def fault_of(config: Mapping[str, Any]) -> str:
    """Return how a configuration misbehaves.

    Raises:
        InvalidSettingError: If it names no fault.
    """
    fault = str(config.get("fault", "none"))
    if fault not in FAULTS:
        raise InvalidSettingError("config.fault", fault, ", ".join(FAULTS))
    return fault


def misbehave(fault: str) -> None:
    """End this process as the fault says, or raise.

    Raises:
        EmulatedFaultError: If the fault is to raise.
    """
    if fault == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "exit":
        os._exit(EXIT_STATUS)
    elif fault == "raise":
        raise EmulatedFaultError("The configuration asked for a failure.")


def _attempt(trial: Trial) -> int:
    """Return the number of this attempt, which its directory ``attempt-<n>`` tells; 1 outside a study."""
    prefix, _, number = trial.directory.parent.name.rpartition("-")
    return int(number) if prefix == "attempt" else 1


def _draw(*what: object) -> float:
    """Return a number in [0, 1) that depends on the arguments alone, on any machine."""
    digest = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
