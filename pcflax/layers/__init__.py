"""Layers: a node of the network, the module that predicts it, and its energy."""

from .attention import PCAttention as PCAttention
from .base import PCLayer as PCLayer
from .clamps import Clamp as Clamp
from .clamps import Evidence as Evidence
from .conv import PCConv as PCConv
from .conv_transpose import PCConvTranspose as PCConvTranspose
from .dense import PCDense as PCDense
from .embedding import PCEmbedding as PCEmbedding
from .mlp import PCMLP as PCMLP
from .residual import PCResidual as PCResidual
from .root import PCRoot as PCRoot
from .shape import Flatten as Flatten
from .shape import Reshape as Reshape
from .stack import PCStack as PCStack
