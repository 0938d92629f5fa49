"""The study as a state machine: events in, instructions out; journal and driver.

Reading order: `events` (what can happen, what must be done), `machine` (what follows from each
event) with its parts `search_record`, `trial_record`, `states`, `lifecycle` (trials and jobs),
`allocator` (who gets slots), `pilots`, `completion` and `invariants`; `driver` (the live loop:
journal, then act), `replay` and `decision_graph` (a run as its journal tells it), `usage` and
`summary` (what it has used and come to).

>>> from parsl_rasda.orchestration.assembly import build_machine
>>> from parsl_rasda.orchestration.events import StudyStarted
>>> from parsl_rasda.study import load_study
>>> machine = build_machine(load_study("study.yaml", check_targets=False).stages["tune"].tune)
>>> machine.handle(StudyStarted(at=0.0, num_samples=16, sites={"local": 1}))
(RequestPilot(pilot='local-0', site='local'),)
"""
