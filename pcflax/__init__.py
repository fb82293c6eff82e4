"""pcflax: predictive coding networks on Flax NNX and JAX."""

from . import energies as energies
from . import inference as inference
from . import initializers as initializers
from . import learning as learning
from . import networks as networks
from .energies import Energy as Energy
from .layers import PCDense as PCDense
from .layers import PCLayer as PCLayer
from .layers import PCRoot as PCRoot
from .networks import PCNetwork as PCNetwork
from .variables import Activity as Activity
