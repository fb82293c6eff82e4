"""Initializers: where inference starts."""

from .amortized import Amortized as Amortized
from .direct import DirectFeedback as DirectFeedback
from .downward import Downward as Downward
from .feedforward import Feedforward as Feedforward
from .kept import AbstractKeptStart as AbstractKeptStart
from .kept import ClassAverage as ClassAverage
from .kept import Persistent as Persistent
from .random import Normal as Normal
from .random import Zeros as Zeros
