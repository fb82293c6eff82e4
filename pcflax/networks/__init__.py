"""Networks: layers and their wiring."""

from .base import AbstractPCNetwork as AbstractPCNetwork
from .chain import PCNetwork as PCNetwork
from .clamps import Clamp as Clamp
from .clamps import Clamps as Clamps
from .split import SplitNetwork as SplitNetwork
from .split import split as split
