"""The study as a state machine: events in, instructions out; journal and driver.

Reading order: `events` (what can happen, what must be done), `life` (trials and jobs), `slots` (who
gets slots), `machine` (what follows from each event), `driver` (the live loop: journal, then act),
`history` and `unfolding` (a run as its journal tells it), `accounts` and `summary` (its books).

>>> from parsl_rasda.orchestration.assembly import build_machine
>>> from parsl_rasda.orchestration.events import StudyStarted
>>> from parsl_rasda.study import load_study
>>> machine = build_machine(load_study("study.yaml", check_targets=False).stages["tune"].tune)
>>> machine.handle(StudyStarted(at=0.0, num_samples=16, sites={"local": 1}))
(RequestPilot(pilot='local-0', site='local'),)
"""
