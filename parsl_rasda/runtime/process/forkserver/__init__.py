"""FORK SERVER: ranks that start in a tenth of a second, forked from a process that has torch loaded.

A launcher starts ``python -S -E -s client.py ORDER.json`` in the place of ``python -m parsl_rasda.runtime
ORDER.json``. The `client` stands in for the rank: it asks the node's `server`, starts one if there is none,
and stays under the launcher as long as the rank lives; it passes signals down and the exit status up.
The server forks a `supervisor` for each rank, which forks the rank. If any of them dies, so do the others,
except for the server: ranks live on without it, and it ends by itself when there are no ranks.

Slurm ends with a job step all processes that were started in it, and a container what was started inside. So
where ranks are steps (``srun``) or in containers, their pilot has a `keeper` start the servers before the
launch, in one lasting step or container per node. Ranks of ``mpiexec``
inside Slurm are steps too, but nobody starts servers for them: they start plainly, and say so in the log.

There is one server for each run, node, interpreter and environment. Whatever keeps it from serving, the
client logs it and becomes the rank itself: a fork server may only make things faster.

Reading order: `client`, `server`, `supervisor` (with `process_tree`), `keeper`.
"""
