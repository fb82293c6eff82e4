"""Checkpoints: exact states of a run in a folder, sealed, restored exactly or not at all."""

from .reading import Checkpoint as Checkpoint
from .reading import load_checkpoint as load_checkpoint
from .store import Checkpoints as Checkpoints
