"""Networks: layers and their wiring."""

from pcflax.layers import Clamp as Clamp

from .adjacency import from_adjacency as from_adjacency
from .base import AbstractPCNetwork as AbstractPCNetwork
from .batch_state import after_batch as after_batch
from .network import PCGraph as PCGraph
from .network import PCNetwork as PCNetwork
from .previous import Previous as Previous
from .pure import SplitNetwork as SplitNetwork
from .pure import split as split
from .pure import write as write
from .summary import Cost as Cost
from .summary import LayerSummary as LayerSummary
from .summary import Summary as Summary
from .wiring import Combine as Combine
from .wiring import Concatenate as Concatenate
from .wiring import Sum as Sum
from .wiring import Wiring as Wiring
