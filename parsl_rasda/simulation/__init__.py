"""The same machine under a virtual clock.

`rehearsal` answers the machine's instructions with events of virtual time; `costs` says how long
things take there, assumed, and `measured` reads it from a run; `forecast` compares policies, which
is what `parsl-rasda plan` prints.
"""
