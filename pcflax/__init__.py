"""pcflax: predictive coding networks on Flax NNX and JAX."""

from . import data as data
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
from .training import Callback as Callback
from .training import Checkpoint as Checkpoint
from .training import CheckpointError as CheckpointError
from .training import Checkpoints as Checkpoints
from .training import CheckpointWarning as CheckpointWarning
from .training import ConsoleLogger as ConsoleLogger
from .training import EarlyStopping as EarlyStopping
from .training import History as History
from .training import JSONLinesLogger as JSONLinesLogger
from .training import NonFiniteEnergyError as NonFiniteEnergyError
from .training import TensorBoardLogger as TensorBoardLogger
from .training import Trainer as Trainer
from .training import load_checkpoint as load_checkpoint
from .training import metrics as metrics
from .variables import Activity as Activity
