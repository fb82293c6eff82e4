"""Initializers: where inference starts."""

from .amortized import Amortized as Amortized
from .feedforward import Feedforward as Feedforward
from .random import Normal as Normal
from .random import Zeros as Zeros
