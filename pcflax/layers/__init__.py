"""Layers: a node of the network, the module that predicts it, and its energy."""

from .base import PCLayer as PCLayer
from .dense import PCDense as PCDense
from .root import PCRoot as PCRoot
