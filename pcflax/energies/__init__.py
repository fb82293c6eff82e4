"""Energies: how a layer scores the mismatch of its activity and its prediction."""

from .activity_decay import ActivityDecay as ActivityDecay
from .base import Energy as Energy
from .base import check_range as check_range
from .base import check_same_shape as check_same_shape
from .base import sum_features as sum_features
from .base import total_energy as total_energy
from .bernoulli import Bernoulli as Bernoulli
from .categorical import Categorical as Categorical
from .full_gaussian import FullGaussian as FullGaussian
from .gaussian import Gaussian as Gaussian
from .heteroscedastic import Heteroscedastic as Heteroscedastic
from .huber import Huber as Huber
from .kl import KL as KL
from .laplace import Laplace as Laplace
from .learned_gaussian import LearnedGaussian as LearnedGaussian
from .running_gaussian import RunningGaussian as RunningGaussian
