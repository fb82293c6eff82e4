"""Layers: a node of the network, the module that predicts it, and its energy."""

from .affine import PCAffine as PCAffine
from .base import PCLayer as PCLayer
from .blocks import PCMLP as PCMLP
from .blocks import PCAttention as PCAttention
from .blocks import PCResidual as PCResidual
from .clamps import Clamp as Clamp
from .clamps import Evidence as Evidence
from .conv import PCConv as PCConv
from .conv import PCConvTranspose as PCConvTranspose
from .dense import PCDense as PCDense
from .embedding import PCEmbedding as PCEmbedding
from .feedback import Feedback as Feedback
from .root import PCRoot as PCRoot
from .shape import Flatten as Flatten
from .shape import Reshape as Reshape
from .stack import PCStack as PCStack
