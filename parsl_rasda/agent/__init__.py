"""ON THE PILOTS: what Parsl's workers and Globus Compute's endpoints run for a study.

`job` runs one attempt: it starts a `launch`, relays between rank 0 and the controller (`control_relay`) and
returns when every process of it is gone. `exit_diagnosis` reads what an attempt has left on disk,
`orphan_reaper` finds and ends what was orphaned, `node_probe` says what the pilot has, `slurm` and `pbs` ask
the batch system. `worker_pool` starts Parsl's workers, `die_with_parent` ends their fork server, `lean_parsl`
imports half of Parsl for its own processes.

Behind an endpoint there is no channel: `endpoint_tasks` and `stage_calls` leave all on the site's disk,
with a `heartbeat`, and hold the pilot by a `pilot_lease`.

Nothing here sees more of the package than the protocol, types, errors and devices.
"""
