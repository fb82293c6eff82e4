"""pcflax: predictive coding networks on Flax NNX and JAX.

Folders and names load when they are first used, so that a command or a script pays for what it needs.
A new public name goes into the table and into the imports below it, which editors and type checkers read.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Every folder is a name of its own; these names of theirs are at the top level too.
_NAMES = {
    "analysis": "",
    "citations": "citation",
    "data": "",
    "energies": "Energy",
    "errors": "ConvergenceError NonFiniteEnergyError",
    "experiments": "",
    "inference": "",
    "initializers": "",
    "layers": "Clamp Evidence PCAttention PCConv PCConvTranspose PCDense PCEmbedding PCLayer PCMLP "
    "PCResidual PCRoot PCStack",
    "learning": "",
    "models": "",
    "networks": "PCGraph PCNetwork",
    "parameterizations": "",
    "plotting": "",
    "sharding": "",
    "training": "CSVLogger Callback Checkpoint CheckpointError CheckpointWarning Checkpoints ConsoleLogger "
    "EarlyStopping Equilibrium Feedforward Filter Forecast History JSONLinesLogger MLflowLogger "
    "Reconstruction Smoother TensorBoardLogger Trainer WandbLogger load_checkpoint load_partial "
    "load_weights metrics save_weights",
    "typing": "",
    "variables": "Activity",
}
_FOLDERS = {name: folder for folder, names in _NAMES.items() for name in names.split()}
__all__ = sorted({*_NAMES, *_FOLDERS} - {"citations", "training", "typing", "variables"})  # type: ignore


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _FOLDERS:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])  # Python adds a guess
    value = getattr(importlib.import_module(f".{_FOLDERS[name]}", __name__), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*_NAMES, *_FOLDERS, *(name for name in globals() if name.startswith("__"))})


if TYPE_CHECKING:
    from . import analysis as analysis
    from . import citations as citations
    from . import data as data
    from . import energies as energies
    from . import errors as errors
    from . import experiments as experiments
    from . import inference as inference
    from . import initializers as initializers
    from . import layers as layers
    from . import learning as learning
    from . import models as models
    from . import networks as networks
    from . import parameterizations as parameterizations
    from . import plotting as plotting
    from . import sharding as sharding
    from . import training as training
    from . import typing as typing
    from . import variables as variables
    from .citations import citation as citation
    from .energies import Energy as Energy
    from .errors import ConvergenceError as ConvergenceError
    from .errors import NonFiniteEnergyError as NonFiniteEnergyError
    from .layers import PCMLP as PCMLP
    from .layers import Clamp as Clamp
    from .layers import Evidence as Evidence
    from .layers import PCAttention as PCAttention
    from .layers import PCConv as PCConv
    from .layers import PCConvTranspose as PCConvTranspose
    from .layers import PCDense as PCDense
    from .layers import PCEmbedding as PCEmbedding
    from .layers import PCLayer as PCLayer
    from .layers import PCResidual as PCResidual
    from .layers import PCRoot as PCRoot
    from .layers import PCStack as PCStack
    from .networks import PCGraph as PCGraph
    from .networks import PCNetwork as PCNetwork
    from .training import Callback as Callback
    from .training import Checkpoint as Checkpoint
    from .training import CheckpointError as CheckpointError
    from .training import Checkpoints as Checkpoints
    from .training import CheckpointWarning as CheckpointWarning
    from .training import ConsoleLogger as ConsoleLogger
    from .training import CSVLogger as CSVLogger
    from .training import EarlyStopping as EarlyStopping
    from .training import Equilibrium as Equilibrium
    from .training import Feedforward as Feedforward
    from .training import Filter as Filter
    from .training import Forecast as Forecast
    from .training import History as History
    from .training import JSONLinesLogger as JSONLinesLogger
    from .training import MLflowLogger as MLflowLogger
    from .training import Reconstruction as Reconstruction
    from .training import Smoother as Smoother
    from .training import TensorBoardLogger as TensorBoardLogger
    from .training import Trainer as Trainer
    from .training import WandbLogger as WandbLogger
    from .training import load_checkpoint as load_checkpoint
    from .training import load_partial as load_partial
    from .training import load_weights as load_weights
    from .training import metrics as metrics
    from .training import save_weights as save_weights
    from .variables import Activity as Activity
