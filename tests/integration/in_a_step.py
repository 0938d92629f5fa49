"""A rank's client in a Slurm step as cgroups show it; the test cluster has no cgroups of its own.

python -S -E -s in_a_step.py CLIENT ORDER: CLIENT is told that it stands in ``step_0``.
"""

import sys
from pathlib import Path

path, *arguments = sys.argv[1:]
sys.path[0] = str(Path(path).parent)
import client  # noqa: E402 - beside the client that was named

client._control_groups = lambda: "0::/system.slice/slurmstepd.scope/job_1/step_0/user/task_0\n"
client.main(arguments)
