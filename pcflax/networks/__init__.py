"""Networks: layers and their wiring."""

from .base import AbstractPCNetwork as AbstractPCNetwork
from .chain import PCNetwork as PCNetwork
from .split import SplitNetwork as SplitNetwork
from .split import split as split
