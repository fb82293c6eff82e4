"""Loggers: where measurements go. Each is a callback.

The console shows what a person waits for; JSON lines and tables are what programs read, and hold nothing that
two equal runs would not share; TensorBoard, Weights & Biases and MLflow have browsers. Paths are fixed when a
logger is made: a later change of folder moves nothing.
"""

from .console import ConsoleLogger as ConsoleLogger
from .console import plain_console as plain_console
from .json_lines import JSONLinesLogger as JSONLinesLogger
from .mlflow import MLflowLogger as MLflowLogger
from .table import CSVLogger as CSVLogger
from .tensorboard import TensorBoardLogger as TensorBoardLogger
from .wandb import WandbLogger as WandbLogger
