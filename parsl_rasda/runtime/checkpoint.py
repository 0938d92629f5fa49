"""The name that `runtime.checkpoints.checkpoint` had in 0.1, for scripts that read checkpoints."""

from parsl_rasda.runtime.checkpoints.checkpoint import *  # noqa: F403
