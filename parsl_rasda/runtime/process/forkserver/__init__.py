"""Ranks that start in a tenth of a second: forked from a process that has torch loaded.

A launcher starts ``python -S -E -s client.py ORDER.json`` in the place of ``python -m parsl_rasda.runtime
ORDER.json``. The `client` is the rank's stand-in: it asks the node's `server`, which it starts if there
is none, and stays under the launcher as long as the rank lives, passing signals down and the exit
status up. The server forks a `supervisor` for each rank, which forks the rank. Whoever dies takes the
rest along, but the server: ranks live on without it, and without ranks it ends by itself.

Slurm ends with a job step whatever was started in it, so where ranks are steps (``srun``) their pilot
has a `keeper` start the servers, one lasting step a node, before the launch. Ranks of ``mpiexec`` inside
Slurm are steps too, and nobody starts servers for them: they start plainly, and say so in the log.

One server per run, node, interpreter and environment. Whatever keeps it from serving, the client says so
and becomes the rank itself: a fork server may only ever make things faster.
"""
