"""Energies: how a layer scores the mismatch of its activity and its prediction."""

from .base import Energy as Energy
from .bernoulli import Bernoulli as Bernoulli
from .categorical import Categorical as Categorical
from .gaussian import Gaussian as Gaussian
