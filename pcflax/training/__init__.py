"""Training: the step, the compiled loop, the Trainer around it, checkpoints, callbacks and loggers."""

from pcflax.errors import CheckpointError as CheckpointError
from pcflax.errors import CheckpointWarning as CheckpointWarning
from pcflax.errors import NonFiniteEnergyError as NonFiniteEnergyError
from pcflax.errors import Terminated as Terminated

from .callbacks import Callback as Callback
from .callbacks import EarlyStopping as EarlyStopping
from .callbacks import RunningTrainer as RunningTrainer
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import Checkpoints as Checkpoints
from .checkpoints import PartialReport as PartialReport
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import load_partial as load_partial
from .checkpoints import load_weights as load_weights
from .checkpoints import save_weights as save_weights
from .filtering import Filter as Filter
from .filtering import Forecast as Forecast
from .filtering import Smoother as Smoother
from .freezing import restrict as restrict
from .history import History as History
from .loggers import ConsoleLogger as ConsoleLogger
from .loggers import CSVLogger as CSVLogger
from .loggers import JSONLinesLogger as JSONLinesLogger
from .loggers import MLflowLogger as MLflowLogger
from .loggers import TensorBoardLogger as TensorBoardLogger
from .loggers import WandbLogger as WandbLogger
from .reading import AbstractReading as AbstractReading
from .reading import Answer as Answer
from .reading import Equilibrium as Equilibrium
from .reading import Feedforward as Feedforward
from .reading import answer as answer
from .reconstruction import Reconstruction as Reconstruction
from .step import TrainInfo as TrainInfo
from .step import TrainState as TrainState
from .step import make_step as make_step
from .trainer import Trainer as Trainer
