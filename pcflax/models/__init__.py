"""Ready networks: each a function from sizes to a network, to use or to copy and change."""

from .both_ways import bidirectional as bidirectional
from .both_ways import hybrid as hybrid
from .decoder import conv_decoder as conv_decoder
from .decoder import decoder as decoder
from .mlp import mlp as mlp
from .residual_mlp import residual_mlp as residual_mlp
from .resnet import resnet18 as resnet18
from .state_space import Transition as Transition
from .state_space import temporal as temporal
from .transformer import transformer as transformer
from .vgg import vgg5 as vgg5
from .vgg import vgg7 as vgg7
from .vgg import vgg10 as vgg10
