"""A run while it happens: in a terminal (`live`), as lines in a log (`plain`), in a notebook (`line`).

Each is a `ProgressReporter`. `decisions` and `search_progress` are what they show; `choice` picks one.
"""
