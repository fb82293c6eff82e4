"""Training: the step, the compiled loop, the Trainer around it, checkpoints, callbacks and loggers."""

from .callbacks import Callback as Callback
from .callbacks import EarlyStopping as EarlyStopping
from .callbacks import RunningTrainer as RunningTrainer
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import Checkpoints as Checkpoints
from .checkpoints import load_checkpoint as load_checkpoint
from .errors import CheckpointError as CheckpointError
from .errors import CheckpointWarning as CheckpointWarning
from .errors import NonFiniteEnergyError as NonFiniteEnergyError
from .errors import Terminated as Terminated
from .history import History as History
from .loggers import ConsoleLogger as ConsoleLogger
from .loggers import JSONLinesLogger as JSONLinesLogger
from .loggers import TensorBoardLogger as TensorBoardLogger
from .step import TrainInfo as TrainInfo
from .step import TrainState as TrainState
from .step import make_step as make_step
from .trainer import Trainer as Trainer
