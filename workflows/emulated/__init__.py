"""Emulated training: sleeps as long as an epoch would take and reports a loss that is a pure function."""
