"""One plug-in of each kind, as somebody else would write it."""
