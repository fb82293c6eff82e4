"""Experiments: many runs as one question, their statistics, and the search for the best."""

from .comparison import compare as compare
from .contrasts import Contrast as Contrast
from .folders import load_runs as load_runs
from .plan import Plan as Plan
from .replicas import Replicas as Replicas
from .replicate import replicate as replicate
from .runs import OneRun as OneRun
from .runs import Runs as Runs
from .statistics import Curves as Curves
from .statistics import Interval as Interval
from .statistics import Sample as Sample
from .sweep import Outcome as Outcome
from .sweep import Sweep as Sweep
from .sweep import sweep as sweep
from .table import Comparison as Comparison
from .tasks import AccuracyMatrix as AccuracyMatrix
from .tasks import TaskAccuracies as TaskAccuracies
from .tasks import learn_tasks as learn_tasks
from .trial import Trial as Trial
