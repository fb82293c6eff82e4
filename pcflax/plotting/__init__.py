"""Plotting: arrays in, a matplotlib Figure out."""

from .training import training_figure as training_figure
