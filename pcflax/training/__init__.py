"""Training: the compiled loop, the Trainer around it, checkpoints, callbacks and loggers."""

from .arrays import CheckpointError as CheckpointError
from .callbacks import Callback as Callback
from .callbacks import EarlyStopping as EarlyStopping
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import Checkpoints as Checkpoints
from .checkpoints import CheckpointWarning as CheckpointWarning
from .checkpoints import load_checkpoint as load_checkpoint
from .errors import NonFiniteEnergyError as NonFiniteEnergyError
from .history import History as History
from .loggers import ConsoleLogger as ConsoleLogger
from .loggers import JSONLinesLogger as JSONLinesLogger
from .loggers import TensorBoardLogger as TensorBoardLogger
from .trainer import Trainer as Trainer
