"""Checkpoints: exact states of a run in a folder, sealed, restored exactly or not at all."""

from .partial import PartialReport as PartialReport
from .partial import load_partial as load_partial
from .reading import Checkpoint as Checkpoint
from .reading import load_checkpoint as load_checkpoint
from .store import Checkpoints as Checkpoints
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights
