"""Data: seeded, resumable batches from arrays, TFDS, texts, or the embedded digits."""

from . import scenarios as scenarios
from .arrays import ArrayDataset as ArrayDataset
from .arrays import from_arrays as from_arrays
from .augment import Augmentation as Augmentation
from .augment import Crop as Crop
from .augment import Flip as Flip
from .base import Dataset as Dataset
from .decoder import Decoder as Decoder
from .loader import LoaderDataset as LoaderDataset
from .loader import from_loader as from_loader
from .sequences import from_sequences as from_sequences
from .sources import load as load
from .stream import StreamDataset as StreamDataset
from .text import TextDataset as TextDataset
