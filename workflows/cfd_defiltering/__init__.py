"""Defiltering of 2-D turbulence: simulate, prepare, tune by RASDA, evaluate on a flow never seen."""
