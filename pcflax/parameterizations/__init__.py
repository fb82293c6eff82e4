"""Parameterizations: how weights and learning rates scale with width and depth."""

from .base import AbstractParameterization as AbstractParameterization
from .mupc import MuPC as MuPC
from .ntk import NTK as NTK
from .standard import Standard as Standard
