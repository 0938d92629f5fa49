"""Static analysis of the user's Python: nothing here imports or runs it.

Read `targets` (where a ``package.module:function`` is defined, and with which signature), `annotations`
(which constants fit a parameter), then `code` (what a function does, as text that changes when that may
change).
"""
