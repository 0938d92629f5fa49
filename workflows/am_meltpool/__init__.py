"""Laser speed and power from videos of melt pools: simulate, render, tune by RASDA, evaluate."""
