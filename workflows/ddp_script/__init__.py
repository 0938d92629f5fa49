"""Somebody's DistributedDataParallel script, tuned as it is."""
