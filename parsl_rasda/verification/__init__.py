"""Whether a run is what it says: its decisions are made again, and samples of it are trained again.

Read `decisions` (the journal), `presence` (what the ranks wrote, and must be there), `stretches` (what was
trained in one piece, and can be again), `retraining` (ranks on this machine, at another width) and `verdict`
(what came of it). Nothing of the run is changed.
"""
