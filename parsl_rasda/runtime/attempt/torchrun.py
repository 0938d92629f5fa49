"""The environment that torchrun gives to a script, in place of the launcher's and the batch system's.

Names and meanings: https://docs.pytorch.org/docs/stable/elastic/run.html, "Environment Variables". Lightning,
Accelerate and DeepSpeed choose how they start by what they find: with `TORCHELASTIC_RUN_ID` as under
torchrun, with `SLURM_NTASKS` or `OMPI_COMM_WORLD_SIZE` as under srun or mpiexec, which did start us and not
the script. What says which job it is, and where (`SLURM_JOB_ID`, `SLURMD_NODENAME`, `SLURM_TMPDIR`), stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from parsl_rasda.protocol import JobSpec
from parsl_rasda.runtime.attempt.launch_context import LaunchContext

# Variables that say how many tasks a launch has, which of them this is, and on which nodes they are.
_LAYOUT = re.compile(
    r"(SLURM|SLURMD)_(NTASKS|NPROCS|PROCID|LOCALID|NODEID|GTIDS|TASK|TASKS|STEP|SRUN|UMASK|DISTRIBUTION"
    r"|NNODES|JOB_NUM_NODES|JOB_NODELIST|NODELIST|LAUNCH|MPI|PMI)(_\w+)?"
    r"|(PMI|PMI2|PMIX|OMPI|PRTE|PALS|MPI|MPIR|MV2|HYDRA|HYDI|I_MPI|FLUX)_\w+"
    r"|PARSL_RASDA_(RANK|SIZE|LOCAL_RANK)"
    r"|PBS_(NODEFILE|NODENUM|TASKNUM|NP|NUM_NODES|NUM_PPN|VNODENUM)"
)


def torchrun_environment(
    spec: JobSpec, context: LaunchContext, environ: Mapping[str, str], host: str, port: int
) -> dict[str, str]:
    """Return the environment of a script's rank.

    Args:
        spec: Its job.
        context: Which rank it is.
        environ: This process's own.
        host: Where rank 0 of the script listens.
        port: On which port.
    """
    kept = {name: value for name, value in environ.items() if not _LAYOUT.fullmatch(name)}
    size = str(context.size)
    return {
        **kept,
        "RANK": str(context.rank),
        "WORLD_SIZE": size,
        "LOCAL_RANK": str(context.device_index),
        "LOCAL_WORLD_SIZE": str(context.local_size),
        "GROUP_RANK": str(context.node_rank),
        "GROUP_WORLD_SIZE": str(context.nodes),
        "NODE_RANK": str(context.node_rank),  # Lightning's and DeepSpeed's word for it
        "ROLE_NAME": "default",
        "ROLE_RANK": str(context.rank),
        "ROLE_WORLD_SIZE": size,
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": str(spec.job),
        "TORCHELASTIC_RESTART_COUNT": str(spec.attempt - 1),
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 of the script has the store
    }
