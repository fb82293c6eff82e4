"""Inference: algorithms that minimise the energy over the free activities."""

from .base import AbstractInference as AbstractInference
from .base import AbstractIterativeInference as AbstractIterativeInference
from .base import StepInfo as StepInfo
from .gradient import GradientDescent as GradientDescent
from .problem import InferenceProblem as InferenceProblem
from .problem import make_problem as make_problem
from .result import InferenceResult as InferenceResult
from .result import Trace as Trace
