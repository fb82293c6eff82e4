"""Sharding: which of several devices holds which part of a network, of a batch and of a stack's layers."""

from .placement import Placement as Placement
from .placement import data as data
from .placement import features as features
from .placement import layers as layers
from .placement import rules as rules
