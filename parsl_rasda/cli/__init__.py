"""The command line, one module a command: each parses, calls one function and prints.

`main` holds the console script and reports errors; commands share `options`, `output` and
`run_and_report`, which shows how a run ended by `outcome`. `display` shows it while it happens.
"""
