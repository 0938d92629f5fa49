"""With which command a trial starts: argv per launcher. Pure: nothing is started here.

Read `base` (the port and its records), then one dialect: `process` is the shortest, `srun` the
longest. `registry` finds a dialect by the name a site file uses. `container` has the words that go before
the program where ranks run in one. Ranks mask their GPUs themselves
(`protocol.JobSpec.slots`), so no command carries a mask.

    >>> from parsl_rasda.launch.base import LaunchSettings
    >>> from parsl_rasda.launch.registry import build_launcher
    >>> from parsl_rasda.types import NodeName, NodeSlots, PilotId, Placement, SiteName
    >>> placement = Placement(SiteName("here"), PilotId("p"), (NodeSlots(NodeName("n0"), (0, 1)),))
    >>> build_launcher("hydra").command(placement, ("python", "train.py"), LaunchSettings()).argv
    ('mpiexec', '-hosts', 'n0', '-ppn', '2', '-n', '2', 'python', 'train.py')
"""
