"""The same machine under a virtual clock.

`rehearsal` answers the machine's instructions with events of virtual time; `costs` has the times that a
study assumes, `measured` those of a run; `forecast` compares policies for `parsl-rasda plan`.
"""
