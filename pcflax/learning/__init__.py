"""Learning: rules that turn a batch into new parameters."""

from .augmented_lagrangian import AugmentedLagrangian as AugmentedLagrangian
from .backprop import Backprop as Backprop
from .base import AbstractGradientLearning as AbstractGradientLearning
from .base import AbstractLearning as AbstractLearning
from .base import LearningInfo as LearningInfo
from .base import apply as apply
from .fixed_prediction import FixedPrediction as FixedPrediction
from .implicit import Implicit as Implicit
from .incremental import IncrementalPC as IncrementalPC
from .layer_rates import scale_by_layer as scale_by_layer
from .matrix_steps import matrix_steps as matrix_steps
from .meta_pcn import MetaPCN as MetaPCN
from .nudged import Nudged as Nudged
from .predictive_coding import PredictiveCoding as PredictiveCoding
from .regularizers import normalize_spectral as normalize_spectral
from .regularizers import spectral_penalty as spectral_penalty
from .regularizers import weight_decay as weight_decay
from .temporal import Temporal as Temporal
from .zil import ZIL as ZIL
