"""PROCESS: how a rank starts, is told to leave, and ends. Imports torch only where a rank needs it.

A launcher starts ``python -m parsl_rasda.runtime ORDER.json`` once per rank, or the `forkserver`'s client in
its place, which has the rank forked from a process that has torch loaded.

Reading order: `rank` (from the start to the end of one rank), `binding` (the cores it keeps to), `command`
(scripts that know nothing of us), `rank_parent` and `exit_status` (how the launcher sees a rank end),
`forkserver`.
"""
