"""Analysis: what theory says of a network, and whether it does what it should."""

from .alignment import Credit as Credit
from .alignment import displacement_alignment as displacement_alignment
from .alignment import gradient_alignment as gradient_alignment
from .chains import chain_diagnostics as chain_diagnostics
from .continual import Continual as Continual
from .continual import continual as continual
from .generation import bits_per_dimension as bits_per_dimension
from .generation import frechet_distance as frechet_distance
from .generation import log_likelihood_bound as log_likelihood_bound
from .health import Health as Health
from .health import InferenceHealth as InferenceHealth
from .health import health as health
from .health import inference_health as inference_health
from .health import unit_health as unit_health
from .linear_theory import DeepLinear as DeepLinear
from .monitor import HealthMonitor as HealthMonitor
from .probes import effective_rank as effective_rank
from .probes import knn_probe as knn_probe
from .probes import linear_probe as linear_probe
from .probes import participation_ratio as participation_ratio
from .probes import representations as representations
from .spectrum import Spectrum as Spectrum
from .spectrum import activity_spectrum as activity_spectrum
from .target_alignment import target_alignment as target_alignment
from .trajectories import trajectories as trajectories
