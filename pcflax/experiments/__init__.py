"""Experiments: many seeds as one training, and statistics of what they measured."""

from .folders import load_runs as load_runs
from .replicas import Replicas as Replicas
from .replicate import replicate as replicate
from .runs import OneRun as OneRun
from .runs import Runs as Runs
from .statistics import Curves as Curves
from .statistics import Interval as Interval
from .statistics import Sample as Sample
