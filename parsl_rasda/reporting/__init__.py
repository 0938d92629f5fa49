"""What a run has come to: for eyes, for spreadsheets and for programs.

`runs` reads a run directory, `words` and `tables` make it readable, `files` writes it down.
"""
