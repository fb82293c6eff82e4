"""Inference: algorithms that minimise the energy over the free activities."""

from .base import AbstractInference as AbstractInference
from .base import AbstractIterativeInference as AbstractIterativeInference
from .base import StepInfo as StepInfo
from .error_coordinates import ErrorCoordinates as ErrorCoordinates
from .gradient import GradientDescent as GradientDescent
from .gradient_flow import GradientFlow as GradientFlow
from .langevin import Langevin as Langevin
from .linear import LinearSolve as LinearSolve
from .newton import GaussNewton as GaussNewton
from .newton import NewtonCG as NewtonCG
from .problem import InferenceProblem as InferenceProblem
from .problem import make_problem as make_problem
from .result import InferenceResult as InferenceResult
from .result import Trace as Trace
from .sequence import Sequence as Sequence
