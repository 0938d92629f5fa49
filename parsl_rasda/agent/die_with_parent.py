"""Imported for its effect: the process that imports it is killed when its parent ends.

For the server from which workers are forked: if Parsl's manager is killed, so is the server. Its
workers then have another parent, which is how a job notices (`agent.job`).
"""

from __future__ import annotations

import os

from parsl_rasda import prctl

prctl.die_with_parent(os.getppid())
