"""PCX (PyPI: pcx), the library of the PCX benchmark paper, through its public API.

Units. A Vode's se_energy is 1/2 ||h - u||^2 of an example, and the network's energy, mapped over the batch,
is summed over it with psum, as in the library's examples. So `optax.sgd` at the job's activity step
descends each example's own energy without any scaling, and the weights' gradients are multiplied by 1/B
once (`scale_by`). The forward start is the library's STATUS.INIT.

How it is driven: the whole training step in `pxf.jit`, called for every batch, T steps of inference in
`pxf.scan`; `Tuned` scans K such steps in another `pxf.scan`. The T steps unrolled in Python, as in most of
the library's examples, gain little and compile many times longer in the job "inference", but
in "vgg5", where XLA runs convolutions inside a loop many times slower on CPUs: there they are unrolled,
and every batch is a call. XLA runs with its older CPU runtime, a flag of XLA, not of the library, unless
XLA_FLAGS names that flag already: with it most jobs are faster.

Departures: none in the algorithm; in float64, 5 batches of a small "vgg5" end within 2e-12 of
`bare_scan.py`. Kernels are stored as Equinox has them, (out, in) and (out, in, 3, 3), and images as
(channels, height, width), turned inside the jitted step.
"""

import os
from importlib import metadata
from typing import Any

OLDER_RUNTIME = "xla_cpu_use_thunk_runtime"  # read when jax starts
if OLDER_RUNTIME not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{OLDER_RUNTIME}=false".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pcx  # noqa: E402
import pcx.functional as pxf  # noqa: E402
import pcx.nn as pxnn  # noqa: E402
import pcx.predictive_coding as pxc  # noqa: E402
import pcx.utils as pxu  # noqa: E402

from . import Job, Parameters  # noqa: E402
from .bare_scan import ACTIVATIONS, make_optimizer  # noqa: E402

EVERY_EXAMPLE = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))
FREE_ACTIVITIES = pxu.M_hasnot(pxc.VodeParam, frozen=True)
CLEARED = {"clear_params": pxc.VodeParam.Cache}


class Network(pxc.EnergyModule):
    """The network of a job on one example, a Vode after every layer, with these parameters."""

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Set every kernel and bias; the last Vode is clamped."""
        super().__init__()
        self.job = pcx.static(job)
        self.layers: list[Any] = []
        for given in parameters:
            kernel = given["kernel"]
            *window, below, above = kernel.shape
            if window:
                layer = pxnn.Conv2d(below, above, 3, padding=1)
                layer.nn.weight.set(jnp.array(kernel.transpose(3, 2, 0, 1)))
            else:
                layer = pxnn.Linear(below, above, bias="bias" in given)
                layer.nn.weight.set(jnp.array(kernel.T))
            if "bias" in given:
                layer.nn.bias.set(jnp.array(given["bias"]).reshape(layer.nn.bias.shape))
            self.layers.append(layer)
        self.pool = pxnn.MaxPool2d(2, 2)
        self.vodes = [pxc.Vode() for _ in parameters]
        self.vodes[-1].h.frozen = True

    def __call__(self, inputs: jax.Array, target: jax.Array | None = None) -> jax.Array:
        """Give every Vode its prediction, clamp to a target if given, and return the last prediction."""
        job = self.job.get()
        activation, value = ACTIVATIONS[job.activation], inputs
        if job.model == "vgg5":
            value = value.transpose(2, 0, 1)
        for index, (layer, vode) in enumerate(zip(self.layers, self.vodes, strict=True)):
            is_last = index == job.depth - 1
            if job.model == "residual":
                change = job.multipliers[index] * layer(activation(value) if index else value)
                value = change if is_last or not index else value + change
            elif job.model == "vgg5":
                value = (
                    layer(value.transpose(1, 2, 0).ravel())
                    if is_last
                    else self.pool(activation(layer(value)))
                )
            else:
                value = layer(value) if is_last else activation(layer(value))
            value = vode(value)
        if target is not None:
            self.vodes[-1].set("h", target)
        return self.vodes[-1].get("u")


@pxf.vmap(EVERY_EXAMPLE, in_axes=(0, 0), out_axes=0)
def forward(inputs: jax.Array, targets: jax.Array | None, *, model: Network) -> jax.Array:
    """The outputs of a batch; every Vode's state is set."""
    return model(inputs, targets)


@pxf.vmap(EVERY_EXAMPLE, in_axes=(0,), out_axes=None, axis_name="batch")
def energy(inputs: jax.Array, *, model: Network) -> jax.Array:
    """The energy, summed over layers and the batch."""
    model(inputs)
    return jax.lax.psum(model.energy(), "batch")


activity_gradient = pxf.value_and_grad(
    pxu.M_hasnot(pxc.VodeParam, frozen=True).to((False, True)),
)(energy)
weight_gradient = pxf.value_and_grad(pxu.M(pxnn.LayerParam).to((False, True)))(energy)


def descend(_: Any, inputs: jax.Array, *, model: Network, optimizer: pxu.Optim) -> tuple:
    """One step on the activities."""
    with pxu.step(model, **CLEARED):
        _, gradients = activity_gradient(inputs, model=model)
    optimizer.step(model, gradients["model"])
    return (inputs,), None


def train_on_batch(batch: tuple, *, model: Network, optimizer: pxu.Optim) -> tuple:
    """Infer and, if the job learns, one step on the weights."""
    inputs, targets = batch
    job = model.job.get()
    with pxu.step(model, (pxc.STATUS.INIT, None), **CLEARED):
        forward(inputs, targets, model=model)
    activity_optimizer = pxu.Optim(
        lambda: optax.sgd(job.activity_step_size), FREE_ACTIVITIES(model)
    )
    pxf.scan(descend, xs=jnp.arange(job.num_inference_steps), unroll=job.model == "vgg5" or 1)(
        inputs, model=model, optimizer=activity_optimizer
    )
    if job.learns:
        with pxu.step(model, **CLEARED):
            _, gradients = weight_gradient(inputs, model=model)
        optimizer.step(model, gradients["model"], scale_by=1 / job.batch_size)
    return (), None


@pxf.jit()
def train_one(inputs: jax.Array, targets: jax.Array, **state: Any) -> None:
    """One batch, (batch, ...)."""
    train_on_batch((inputs, targets), **state)


@pxf.jit()
def train_many(inputs: jax.Array, targets: jax.Array, **state: Any) -> None:
    """Scan K batches, (K, batch, ...)."""
    pxf.scan(train_on_batch, xs=(inputs, targets))(**state)


@pxf.jit()
def outputs_of(inputs: jax.Array, model: Network) -> jax.Array:
    """The feedforward outputs, (batch, classes); a positional model is not written back."""
    model.clear_params(pxc.VodeParam)
    with pxu.step(model, (pxc.STATUS.INIT, None), **CLEARED):
        return forward(inputs, None, model=model)


class Contender:
    """One jitted call of a whole step for every batch."""

    tuned = False
    name = f"PCX {metadata.version('pcx')} (whole step jitted)"
    packages = ("pcx", "jax", "jaxlib", "equinox", "optax")
    rule = "pc"

    def __init__(self, job: Job, parameters: Parameters) -> None:
        """Build the network, give its Vodes their shapes, and start Adam's state."""
        self.job = job
        self.model = Network(job, parameters)
        blank = (
            jnp.zeros((job.batch_size, *shape)) for shape in (job.input_shape, job.widths[-1:])
        )
        with pxu.step(self.model, (pxc.STATUS.INIT, None), **CLEARED):
            forward(*blank, model=self.model)
        self.optimizer = pxu.Optim(lambda: make_optimizer(job), pxu.M(pxnn.LayerParam)(self.model))

    def run(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Train on, or infer, K batches in order."""
        self.job.check_batches(inputs, targets)
        state = {"model": self.model, "optimizer": self.optimizer}
        if not self.tuned or self.job.model == "vgg5":
            for batch in zip(inputs, targets, strict=True):
                train_one(*batch, **state)
        else:
            train_many(inputs, targets, **state)
        jax.block_until_ready(jax.tree.leaves(state))

    def parameters(self) -> Parameters:
        """Return the parameters, copied, in the form in which they were given."""
        result = []
        for layer in self.model.layers:
            kernel = np.array(layer.nn.weight.get())
            kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
            result.append({"kernel": kernel.copy()})
            if layer.nn.bias is not None:
                result[-1]["bias"] = np.array(layer.nn.bias.get()).ravel()
        return result

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feedforward outputs, (batch, ...) -> (batch, classes)."""
        return np.array(outputs_of(inputs, self.model))


class Tuned(Contender):
    """K steps in one call."""

    tuned = True
    name = f"PCX {metadata.version('pcx')} (tuned: K steps scanned by hand)"
