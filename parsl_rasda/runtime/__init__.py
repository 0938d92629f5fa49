"""ON THE RANKS: what runs inside a job, and the only package that imports torch.

A launcher starts ``python -m parsl_rasda.runtime ORDER.json`` once per rank. Reading order:
`trial` (what users see), `replicas` and `learning_rate` (what a step is, as pure functions), `engine`
and `reduction` (how it is computed, the same at any width), `checkpoint`, then `session`, `channel`
and `__main__` (how a job starts, reports and leaves). `command` runs scripts that know nothing of us.

Try a training function without a study::

    trial = local_trial({"lr": 0.1}, epochs=2, batch_size=16)
    train(trial)
    print(trial.history[-1].metrics)
"""

from __future__ import annotations

from parsl_rasda.runtime.checkpoints.checkpoint import load_model
from parsl_rasda.runtime.local import local_trial
from parsl_rasda.runtime.trial import Trial

__all__ = ["Trial", "load_model", "local_trial"]
