"""How the launcher sees a rank end that others would not notice.

Most launchers let the other ranks run on when one merely exits. Those would wait for it in their next
collective operation, under NCCL for half an hour. Only a death by signal ends the launch at once and
everywhere. And only the parent of the rank knows the reason: the ranks that the launcher then ends believe
that they were preempted.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path

from parsl_rasda.atomic_files import create_file
from parsl_rasda.protocol import JobSpec, report_of_epochs
from parsl_rasda.runtime.attempt.launch_context import launched
from parsl_rasda.types import Outcome, Phase


def shown_status(spec: JobSpec, environ: Mapping[str, str], status: int) -> int:
    """Return the status that the launcher shall see, and report an end that the rank did not report itself.

    Args:
        spec: The job of the rank.
        environ: The environment of the rank.
        status: Its own status, as in `subprocess`: negative for a death by signal.
    """
    if spec.world_size == 1 or status == 0:
        return status
    how = f"died by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    directory, cause = Path(spec.directory), f"rank {launched(environ)[0]} {how}"
    result = report_of_epochs(directory, spec, Outcome.LOST, cause, phase=Phase.MET)
    with contextlib.suppress(OSError):  # on a full disk nothing can be reported: the agent sees it too
        create_file(directory / "report.json", json.dumps(result.to_json(), indent=1))
    return status if status < 0 else -signal.SIGKILL
