"""Plotting: arrays, or a network, in; a matplotlib Figure out."""

from .alignment import alignment_figure as alignment_figure
from .bands import band_figure as band_figure
from .graph import graph_figure as graph_figure
from .images import image_figure as image_figure
from .inference import inference_figure as inference_figure
from .inference import trajectory_figure as trajectory_figure
from .recall import recall_figure as recall_figure
from .sweep import sweep_figure as sweep_figure
from .training import training_figure as training_figure
