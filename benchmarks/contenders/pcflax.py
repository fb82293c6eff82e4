"""pcflax as its users run it: `pc.Trainer.fit` on a data set of arrays, metrics and history on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcflax as pc

from . import Job, Parameters, Unsupported
from .bare_scan import ACTIVATIONS, make_optimizer


def make_network(job: Job, parameters: Parameters, energy: pc.Energy | None = None) -> pc.PCNetwork:
    """The network of a job, from `pc.models`, with these parameters; `energy` is an "mlp"'s output's."""
    rngs, activation = nnx.Rngs(0), ACTIVATIONS[job.activation]
    if job.model == "residual":
        first, width, *_, last = job.widths
        network = pc.models.residual_mlp(
            first, width, last, depth=job.depth, activation=activation, rngs=rngs
        )
        kernels = [layer["kernel"] for layer in parameters]
        network.layers[0].linear.kernel[...] = jnp.array(kernels[0])
        network.layers[1].stacked.linear.kernel[...] = jnp.stack(kernels[1:-1])
        network.layers[2].linear.kernel[...] = jnp.array(kernels[-1])
        return network
    if job.model == "vgg5":
        _, *widths, classes = job.widths
        network = pc.models.vgg5(
            job.input_shape, classes, widths=tuple(widths), activation=activation, rngs=rngs
        )
    else:
        network = pc.models.mlp(*job.widths, activation=activation, energy=energy, rngs=rngs)
    modules = [module for _, module in nnx.iter_modules(network) if hasattr(module, "kernel")]
    for module, given in zip(modules, parameters, strict=True):
        module.kernel[...] = jnp.array(given["kernel"])
        module.bias[...] = jnp.array(given["bias"])
    return network


class Contender:
    """A `pc.Trainer` with `PredictiveCoding` and `GradientDescent`; without learning, `net.infer`."""

    name = "pcflax"
    packages = ("pcflax", "jax", "jaxlib", "flax", "optax")
    rule = "pc"
    energy: pc.Energy | None = None

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the network with these parameters."""
        self.job = job
        self.network = make_network(job, parameters, self.energy)
        self.inference = pc.inference.GradientDescent(
            optax.sgd(job.activity_step_size), num_steps=job.num_inference_steps
        )
        self.trainer = pc.Trainer(
            self.network,
            make_optimizer(job),
            learning=self.make_rule(self.inference),
            progress=False,
        )
        self._data: tuple[np.ndarray, pc.data.Dataset] | None = None

    def make_rule(self, inference: pc.inference.GradientDescent) -> pc.learning.AbstractLearning:
        """Return the rule that infers so."""
        return pc.learning.PredictiveCoding(inference)

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order."""
        self.job.check_batches(inputs, targets)
        if not self.job.learns:
            for batch, labels in zip(inputs, targets, strict=True):
                result = self.network.infer(batch, labels, inference=self.inference)
            jax.block_until_ready(result.energy)
            return
        if self._data is None or self._data[0] is not inputs:
            flat = (array.reshape(-1, *array.shape[2:]) for array in (inputs, targets))
            data = pc.data.from_arrays(*flat, batch_size=self.job.batch_size, shuffle=False)
            self._data = (inputs, data)
        self.trainer.fit(self._data[1], num_steps=self.trainer.step + len(inputs))

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        found = []
        for module in (m for _, m in nnx.iter_modules(self.network) if hasattr(m, "kernel")):
            given = {"kernel": np.array(module.kernel[...])}
            if module.bias is not None:
                given["bias"] = np.array(module.bias[...])
            found.append(given)
        if self.job.model == "residual":  # the stack's kernels have the layer axis first
            first, stacked, last = found
            return [first, *({"kernel": kernel} for kernel in stacked["kernel"]), last]
        return found

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return self.trainer.predict(inputs)


class Chosen(Contender):
    """The cross-library job with the output and the inference that `scripts/cross_library.py` chose."""

    name = "pcflax (categorical output, 3 steps of 0.03)"
    energy = pc.energies.Categorical()
    num_steps, step_size = 3, 0.03

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the network; all but output and inference is the job's."""
        if job.name != "cross-library":
            raise Unsupported("it is chosen for the accuracy of the cross-library job alone")
        changes = {"num_inference_steps": self.num_steps, "activity_step_size": self.step_size}
        super().__init__(dataclasses.replace(job, **changes), parameters)
