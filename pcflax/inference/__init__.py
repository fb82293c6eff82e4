"""Inference: algorithms that minimise the energy over the free activities."""

from .base import AbstractInference as AbstractInference
from .base import AbstractIterativeInference as AbstractIterativeInference
from .base import expect_algorithm as expect_algorithm
from .curvature_descent import CurvatureDescent as CurvatureDescent
from .error_coordinates import ErrorCoordinates as ErrorCoordinates
from .gradient import GradientDescent as GradientDescent
from .gradient_flow import GradientFlow as GradientFlow
from .langevin import Langevin as Langevin
from .linear import LinearSolve as LinearSolve
from .newton import GaussNewton as GaussNewton
from .newton import NewtonCG as NewtonCG
from .output_newton import OutputNewton as OutputNewton
from .problem import InferenceProblem as InferenceProblem
from .problem import VectorField as VectorField
from .problem import make_problem as make_problem
from .result import InferenceResult as InferenceResult
from .result import Seen as Seen
from .result import Status as Status
from .result import Trace as Trace
from .scheduled import Scheduled as Scheduled
from .sequence import Sequence as Sequence
from .solve import FixedSteps as FixedSteps
from .solve import StepInfo as StepInfo
from .solve import UntilTolerance as UntilTolerance
from .solve import finished as finished
from .solve import observe as observe
