"""Sources: where the examples of a data set with a name lie, and how they are read."""

from .catalogue import load as load
