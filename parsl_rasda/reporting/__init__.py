"""The outcome of a run: for people, for spreadsheets and for programs.

`runs` reads a run directory; `format`, `tables` and `html` make it readable; `files` writes the report.
"""
