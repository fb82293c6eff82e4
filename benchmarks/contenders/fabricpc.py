"""FabricPC (PyPI: fabricpc), a library of predictive coding graphs in JAX.

Units are those of `jobs.py` without any scaling: a node's GaussianEnergy is 1/2 ||z - mu||^2 of each
example, InferenceSGD descends the sum over the batch, so each example its own energy, and the
training step divides the weights' gradients by the batch once. FeedforwardStateInit, the library's
default, is the feedforward start.

How it is driven. `make_train_step` returns a whole jitted step, which `Contender` calls for every
batch, as the library's own loop does (its `train` compiles anew at every call, so it is not used).
`Tuned` goes beyond the library: it takes the step for the pure function that it is, drops its metrics
and final state, and scans K of them in one donated call; on a CPU convolutions run slower inside a
scan over batches (about three times in "vgg5"), so there it calls a donated step for every batch. jax
is pinned to 0.10.2 because the convolutions of "vgg5" took about ten times as long under 0.12.0 on a
CPU.

Departures: none in the algorithm; in float64 the parameters after 5 batches are those of
`bare_scan.py` to 1e-11. Two layers are custom nodes, the library's documented way to extend it: of
"residual" (activation before the kernel, and the job's multipliers, which MuPCConfig does not
reproduce) and of "vgg5" (convolution and pooling in one prediction, where the library's ConvNode and
MaxPool would each add an energy of their own). Next file to read: `jpc.py`.
"""

import itertools
from functools import partial
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from fabricpc.core.activations import (
    GeluActivation,
    IdentityActivation,
    ReLUActivation,
    SigmoidActivation,
    TanhActivation,
)
from fabricpc.core.inference import InferenceSGD, run_inference
from fabricpc.core.topology import Edge
from fabricpc.core.types import GraphParams, GraphStructure, NodeParams
from fabricpc.graph_assembly import TaskMap, graph
from fabricpc.graph_initialization.state_initializer import initialize_graph_state
from fabricpc.nodes import ConvNode, IdentityNode, Linear
from fabricpc.nodes.base import NodeBase
from fabricpc.training import build_clamps, make_train_step

from . import Job, Parameters
from .bare_scan import make_optimizer

ACTIVATIONS = {
    "tanh": TanhActivation,
    "sigmoid": SigmoidActivation,
    "relu": ReLUActivation,
    "gelu": GeluActivation,
}


class Residual(Linear):
    """mu = a phi(z) K, plus z where `skip`, (batch, in) -> (batch, out)."""

    def __init__(self, shape, name, activation, *, multiplier: float, skip: bool) -> None:
        NodeBase.__init__(
            self, shape, name, activation, use_bias=False, multiplier=multiplier, skip=skip
        )

    @staticmethod
    def predict(params, inputs, state, node_info):
        """Return the prediction and no intermediates."""
        (edge, below), *_ = inputs.items()
        config, activation = node_info.node_config, node_info.activation
        source = type(activation).forward(below, activation.config)
        change = config["multiplier"] * (source @ params.weights[edge])
        return (below + change if config["skip"] else change), None


class PooledConv(ConvNode):
    """mu = maxpool_2x2(phi(conv(z) + b)); `shape` is that after pooling."""

    @staticmethod
    def predict(params, inputs, state, node_info):
        """Return the prediction and no intermediates."""
        (edge, below), *_ = inputs.items()
        activation = node_info.activation
        output = jax.lax.conv_general_dilated(
            below, params.weights[edge], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        output = type(activation).forward(output + params.biases["b"], activation.config)
        pool = (1, 2, 2, 1)
        return jax.lax.reduce_window(output, -jnp.inf, jax.lax.max, pool, pool, "VALID"), None


def make_graph(job: Job) -> GraphStructure:
    """A chain of one node a layer, named "0" (the input) to "L"."""
    nodes: list[NodeBase] = [IdentityNode(shape=job.input_shape, name="0")]
    for index, width in enumerate(job.widths[1:]):
        name, is_last = str(index + 1), index == job.depth - 1
        activation = ACTIVATIONS[job.activation]()
        if job.model == "residual":
            node: NodeBase = Residual(
                (width,),
                name,
                activation if index else IdentityActivation(),
                multiplier=job.multipliers[index],
                skip=0 < index < job.depth - 1,
            )
        elif job.model == "vgg5" and not is_last:
            size = 16 >> index
            node = PooledConv((size, size, width), name, (3, 3), activation=activation)
        else:
            activation = IdentityActivation() if is_last else activation
            node = Linear((width,), name, activation, flatten_input=job.model == "vgg5")
        nodes.append(node)
    edges = [
        Edge(source=below, target=above.slot("in")) for below, above in itertools.pairwise(nodes)
    ]
    inference = InferenceSGD(job.activity_step_size, job.num_inference_steps)
    return graph(nodes, edges, TaskMap(x=nodes[0], y=nodes[-1]), inference)


class Contender:
    """One call of the library's own jitted step for every batch."""

    tuned = False
    name = f"FabricPC {metadata.version('fabricpc')} (its jitted step)"
    packages = ("fabricpc", "jax", "jaxlib", "optax")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the graph, give its nodes copies of the parameters and start the optimizer."""
        self.job, self.structure = job, make_graph(job)
        nodes = {"0": NodeParams({}, {})}
        for index, layer in enumerate(parameters):
            (edge,) = self.structure.nodes[str(index + 1)].node_info.in_edges
            shape = (1,) * (layer["kernel"].ndim - 1) + (-1,)
            biases = {"b": jnp.array(layer["bias"]).reshape(shape)} if "bias" in layer else {}
            nodes[str(index + 1)] = NodeParams({edge: jnp.array(layer["kernel"])}, biases)
        self.params = GraphParams(nodes)
        optimizer = make_optimizer(job)
        self.state = optimizer.init(self.params)
        self.step = step = make_train_step(self.structure, optimizer)
        self.key = key = jax.random.key(
            0
        )  # of the states' random start, which the feedforward start replaces

        @partial(jax.jit, donate_argnums=(0, 1))
        def train_one(params, state, batch):
            return step(params, state, batch, key)[:2]

        @partial(jax.jit, donate_argnums=(0, 1))
        def train(params, state, batches):
            def body(carry, batch):
                return step(*carry, batch, key)[:2], None

            return jax.lax.scan(body, (params, state), batches)[0]

        @jax.jit
        def infer(params, batches):
            def body(_, batch):
                clamps = build_clamps(batch, self.structure, clamp_target=True)
                state = initialize_graph_state(
                    self.structure, job.batch_size, key, clamps, params=params
                )
                state = run_inference(params, state, clamps, self.structure)
                return None, [state.nodes[str(i)].z_latent for i in range(1, job.depth)]

            return jax.lax.scan(body, None, batches)[1]

        @jax.jit
        def predict(params, inputs):
            state = initialize_graph_state(
                self.structure, len(inputs), key, {"0": inputs}, params=params
            )
            return state.nodes[str(job.depth)].z_mu

        self.scans = job.model != "vgg5" or jax.default_backend() != "cpu"
        self.train, self.train_one, self.infer, self.feedforward = train, train_one, infer, predict

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order; compiles per K."""
        self.job.check_batches(inputs, targets)
        batches = {"x": inputs, "y": targets}
        if not self.job.learns:
            size = len(inputs) if self.tuned else 1
            for k in range(0, len(inputs), size):
                some = {name: array[k : k + size] for name, array in batches.items()}
                found = self.infer(self.params, some)
            jax.block_until_ready(found)
            return
        if self.tuned and self.scans:
            self.params, self.state = self.train(self.params, self.state, batches)
        else:
            for x, y in zip(inputs, targets, strict=True):
                batch = {"x": x, "y": y}
                if self.tuned:
                    self.params, self.state = self.train_one(self.params, self.state, batch)
                else:
                    self.params, self.state, *_ = self.step(
                        self.params, self.state, batch, self.key
                    )
        jax.block_until_ready((self.params, self.state))

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        layers = []
        for index in range(self.job.depth):
            weights, biases = self.params.nodes[str(index + 1)]
            layer = {"kernel": np.array(*weights.values())}
            if biases:
                layer["bias"] = np.array(biases["b"]).ravel()
            layers.append(layer)
        return layers

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return np.array(self.feedforward(self.params, inputs))


class Tuned(Contender):
    """K training steps in one donated call (see above)."""

    tuned = True
    name = f"FabricPC {metadata.version('fabricpc')} (tuned: K steps scanned by hand)"
