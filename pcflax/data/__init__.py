"""Data: seeded, resumable batches from arrays, from TFDS, or from the embedded digits."""

from .arrays import ArrayDataset as ArrayDataset
from .arrays import from_arrays as from_arrays
from .base import Dataset as Dataset
from .base import Decoder as Decoder
from .load import load as load
from .stream import StreamDataset as StreamDataset
