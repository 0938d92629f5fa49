"""Workflows shipped with parsl_rasda, one folder each."""
