"""Initializers: where the free activities start."""

from .feedforward import Feedforward as Feedforward
from .random import Normal as Normal
from .random import Zeros as Zeros
