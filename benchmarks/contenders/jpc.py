"""JPC (thebuckleylab/jpc, not on PyPI), predictive coding on Equinox.

Units. JPC's energy is the mean over the batch, 1/(2B) sum_i sum_l ||z_l - mu_l||^2, so the activity
rate is the job's times B; the weights descend the mean in both and need no scaling.

How it is driven. A training step is JPC's discrete updates: `init_activities_with_ffwd`, T times
`update_pc_activities` with `optax.sgd`, `update_pc_params`. The documentation calls each from Python;
here a whole donated step is jitted and called for every batch, the T calls in a scan that is unrolled
by 5 (wholly in "vgg5"; not in the deep "residual", where unrolling it wholly took 40 s to compile and
gained nothing). `make_pc_step` with diffrax's Euler and a constant step computes the same, but slower
(up to 1.7 times in "notebook"). `Tuned` scans K steps in one call, but in "vgg5" on a CPU, where
convolutions run slower inside a scan over batches (two to four times).

Departures: none in the algorithm; in float64 the parameters after 5 batches are those of
`bare_scan.py` to 1e-11. Layers are Equinox's, "residual" is JPC's own muPC (`param_type="mupc"` with
`make_skip_model`), and that of "vgg5" is a module of this file, channels last. The library needs jax
0.5.2 or older. Next file to read: `requirements/jpc.txt`.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jpc
import numpy as np
import optax

from . import Job, Parameters
from .bare_scan import ACTIVATIONS, make_optimizer


class PooledConv(eqx.Module):
    """mu = maxpool_2x2(phi(conv(z) + b)) of one image, (height, width, channels)."""

    kernel: jax.Array
    bias: jax.Array
    activation: eqx.nn.Lambda

    def __call__(self, image: jax.Array) -> jax.Array:
        """Return the prediction, half as high and wide."""
        output = jax.lax.conv_general_dilated(
            image[None], self.kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        output = self.activation(output + self.bias)
        pool = (1, 2, 2, 1)
        return jax.lax.reduce_window(output, -jnp.inf, jax.lax.max, pool, pool, "VALID")[0]


def make_model(job: Job, parameters: Parameters) -> list:
    """One callable a layer, of one example, with copies of the parameters."""
    model = []
    for index, layer in enumerate(parameters):
        kernel, bias = jnp.array(layer["kernel"]), layer.get("bias")
        activation = eqx.nn.Lambda(ACTIVATIONS[job.activation])
        if kernel.ndim == 4:
            model.append(PooledConv(kernel, jnp.array(bias), activation))
            continue
        linear = eqx.nn.Linear(*kernel.shape, use_bias=bias is not None, key=jax.random.key(0))
        linear = eqx.tree_at(lambda linear: linear.weight, linear, kernel.T)
        if bias is not None:
            linear = eqx.tree_at(lambda linear: linear.bias, linear, jnp.array(bias))
        if job.model == "residual":  # as `jpc.make_mlp` builds it: the activation first
            parts = [activation if index else eqx.nn.Lambda(eqx.nn.Identity()), linear]
        elif index < job.depth - 1:
            parts = [linear, activation]
        else:
            parts = [eqx.nn.Lambda(jnp.ravel), linear]
        model.append(eqx.nn.Sequential(parts))
    return model


class Contender:
    """One donated, jitted call of a whole step of JPC's discrete updates for every batch."""

    tuned = False
    name = f"JPC {jpc.__version__} (whole step jitted)"
    packages = ("jpc", "jax", "jaxlib", "equinox", "optax")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the layers and start the optimizer."""
        self.job = job
        is_residual = job.model == "residual"
        skips = jpc.make_skip_model(job.depth) if is_residual else None
        kind = {"param_type": "mupc" if is_residual else "sp"}
        model = (make_model(job, parameters), skips)
        self.arrays, static = eqx.partition(model, eqx.is_array)
        optimizer = make_optimizer(job)
        self.state = optimizer.init(self.arrays)
        steps = job.num_inference_steps
        unroll = {"mlp": min(5, steps), "residual": 1, "vgg5": steps}[job.model]
        sgd = optax.sgd(job.activity_step_size * job.batch_size)

        def feedforward(model, inputs):
            return jpc.init_activities_with_ffwd(model[0], inputs, skip_model=model[1], **kind)

        def infer(model, inputs, targets):
            def descend(carry, _):
                result = jpc.update_pc_activities(
                    model, carry[0], sgd, carry[1], targets, input=inputs, **kind
                )
                return (result["activities"], result["opt_state"]), None

            activities = feedforward(model, inputs)
            start = (activities, sgd.init(activities))
            (activities, _), _ = jax.lax.scan(descend, start, length=steps, unroll=unroll)
            return activities

        def step(arrays, state, inputs, targets):
            model = eqx.combine(arrays, static)
            activities = infer(model, inputs, targets)
            result = jpc.update_pc_params(
                model, activities, optimizer, state, targets, input=inputs, **kind
            )
            model = (result["model"], result["skip_model"])
            return eqx.filter(model, eqx.is_array), result["opt_state"]

        @partial(jax.jit, donate_argnums=(0, 1))
        def train(arrays, state, inputs, targets):
            def body(carry, batch):
                return step(*carry, *batch), None

            return jax.lax.scan(body, (arrays, state), (inputs, targets))[0]

        @jax.jit
        def infer_all(arrays, inputs, targets):
            model = eqx.combine(arrays, static)
            return jax.lax.scan(
                lambda _, batch: (None, infer(model, *batch)[:-1]), None, (inputs, targets)
            )[1]

        self.scans = self.tuned and (job.model != "vgg5" or jax.default_backend() != "cpu")
        self.train, self.train_one = train, jax.jit(step, donate_argnums=(0, 1))
        self.infer = infer_all
        self.feedforward = jax.jit(
            lambda arrays, x: feedforward(eqx.combine(arrays, static), x)[-1]
        )

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order; compiles per K."""
        self.job.check_batches(inputs, targets)
        if not self.job.learns:
            size = len(inputs) if self.tuned else 1
            for k in range(0, len(inputs), size):
                found = self.infer(self.arrays, inputs[k : k + size], targets[k : k + size])
            jax.block_until_ready(found)
            return
        if self.scans:
            self.arrays, self.state = self.train(self.arrays, self.state, inputs, targets)
        else:
            for batch in zip(inputs, targets, strict=True):
                self.arrays, self.state = self.train_one(self.arrays, self.state, *batch)
        jax.block_until_ready((self.arrays, self.state))

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        layers = []
        for layer in self.arrays[0]:
            if isinstance(layer, PooledConv):
                kernel, bias = layer.kernel, layer.bias
            else:
                (linear,) = (part for part in layer if isinstance(part, eqx.nn.Linear))
                kernel, bias = linear.weight.T, linear.bias
            leaves = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
            layers.append({name: np.array(leaf) for name, leaf in leaves.items()})
        return layers

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return np.array(self.feedforward(self.arrays, inputs))


class Tuned(Contender):
    """K steps in one donated call (see above)."""

    tuned = True
    name = f"JPC {jpc.__version__} (tuned: K steps scanned by hand)"
