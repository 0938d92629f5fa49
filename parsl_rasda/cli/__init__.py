"""The command line, one file a command: each parses, calls one function and prints.

`main` holds the console script and what happens to errors; `options` and `output` are what commands
share; `decisions`, `progress`, `plain` and `live` show a run while it happens.
"""
