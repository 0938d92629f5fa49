"""ON THE RANKS: what runs inside a job, and imports torch; so do `data` and `integrations`.

A launcher starts ``python -m parsl_rasda.runtime ORDER.json`` once per rank. Packages import each other
in one direction only: `process` and `local`, `trial`, `keeper`, `attempt` and `engine`, `checkpoints`.

Reading order: `trial` (what users see), `own_trial` and `own_loop` (one that a loop of theirs trains),
`engine` (how a step is computed, the same at any world size), `checkpoints` (what a trial leaves on
disk), `attempt` (what a job was ordered and reports), `process` (how a rank starts and ends), `local` (a
trial without a controller), `site_probe` (a training function for `parsl-rasda doctor`).

Try a training function without a study::

    trial = local_trial({"lr": 0.1}, epochs=2, batch_size=16)
    train(trial)
    print(trial.history[-1].metrics)
"""

from __future__ import annotations

from parsl_rasda.runtime.checkpoints.model import load_model
from parsl_rasda.runtime.checkpoints.registered import load_registered
from parsl_rasda.runtime.local import local_trial
from parsl_rasda.runtime.trial import Trial

__all__ = ["Trial", "load_model", "load_registered", "local_trial"]
