"""A package of its own: globus-compute-endpoint installs a module of the same name."""
