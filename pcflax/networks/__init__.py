"""Networks: layers and their wiring."""

from .base import AbstractPCNetwork as AbstractPCNetwork
from .chain import PCNetwork as PCNetwork
from .clamps import Clamp as Clamp
from .clamps import Clamps as Clamps
from .graph import Concatenate as Concatenate
from .graph import PCGraph as PCGraph
from .graph import Sum as Sum
from .split import SplitNetwork as SplitNetwork
from .split import split as split
