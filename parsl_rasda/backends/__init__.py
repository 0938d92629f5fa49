"""Where it really runs: Parsl pilots, and what happens on them.

On the controller: `parsl_runner` (one thread, the books of pilots), `jobs` (the books of jobs),
`pilots` and `htex` (Parsl's objects), `control_relay` (the channel to the launches), `several` (many sites
as one runner). On the pilot: `worker_pool` and `tethered` (Parsl's workers, forked), `job` (one task
per job), `launches` (a launch as a process), `node_probe`, `evidence`. On both: `orphan_reaper`, which finds
and ends what was orphaned, and `slurm`, which asks why a job ended and cancels steps. Nothing here
imports Parsl before a runner opens, and nothing imports `runtime`: ranks are started as
``python -m parsl_rasda.runtime``.

    runner = ParslRunner(site, directory)
    with runner.hold():                          # pilots stay from one stage to the next
        fields = runner.submit_stage(simulate)   # beside the jobs, holds no slots
        driver.run(...)                          # opens, uses and closes the runner
"""
