"""The same machine under a virtual clock.

`rehearsal` answers the machine's instructions with events of virtual time; `costs` has the times that a
study assumes, `measured` those of a run, `queues` those of pilots that wait. `policies` names what is
compared, `hyperband` is one of them; `comparison` rehearses each with several draws. `sizes` and `advice`
rehearse the study with changes, and `forecast` puts it all together for `parsl-rasda plan` in the records
of `outcome`.
`remaining` goes on from the middle of a search, `asha` rehearses a finished one.
"""
